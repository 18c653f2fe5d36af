"""What the candidates of a study cost to run, measured once and remembered."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from optuna.trial import FrozenTrial
from pydantic import TypeAdapter, ValidationError

from ensembles.latency import Cost, measure_cost
from search.paths import written_whole
from search.predictions import read_weights
from search.study import Study
from spaces.networks.builders import build_network
from spaces.recipe import recipe_from_json

_ADAPTER = TypeAdapter(dict[int, Cost])


def read_costs(study: Study, trials: Sequence[FrozenTrial]) -> dict[int, Cost]:
    """Return the cost of each trial's network, by the trial's number.

    Args:
        study: The study; what was measured before stands in its `costs.json`.
        trials: Trials whose weights are kept.

    Returns:
        Measured on this machine's CPU or, if they were there, read.

    Raises:
        SearchError: The weights of a trial that has not been measured are gone.
    """
    known = _read_known(study)
    missing = [trial for trial in trials if trial.number not in known]
    for trial in missing:
        recipe = recipe_from_json(trial.user_attrs["recipe"])
        network = build_network(recipe.architecture, study.record.task)
        network.load_state_dict(read_weights(study.paths.trial(trial.number)))
        known[trial.number] = measure_cost(network, study.record.image_input)
    if missing:
        with written_whole(study.paths.costs) as temporary:
            text = json.dumps({number: asdict(cost) for number, cost in known.items()})
            temporary.write_text(text, encoding="utf-8")
    return {trial.number: known[trial.number] for trial in trials}


def _read_known(study: Study) -> dict[int, Cost]:
    try:
        return _ADAPTER.validate_json(study.paths.costs.read_bytes())
    except (OSError, ValidationError):
        return {}  # measured anew

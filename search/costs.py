"""What the candidates of a study cost to run, measured once and remembered.

The cost is that of the recipe, so candidates of the same trial have the same.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError

from ensembles.latency import Cost, measure_cost
from search.candidates import Candidate
from search.drivers import is_frozen
from search.location import location_of
from search.paths import write_whole
from search.predictions import read_weights
from search.study import Study
from spaces.networks.builders import build_network

_ADAPTER = TypeAdapter(dict[int, Cost])


def read_costs(study: Study, candidates: Sequence[Candidate]) -> dict[str, Cost]:
    """Return the cost of each candidate's network, by its name.

    Args:
        study: The study; what was measured before stands in its `costs.json`, by trial.
        candidates: Networks whose weights are there.

    Returns:
        Measured on this machine's CPU or, if they were there, read.

    Raises:
        SearchError: The weights of a candidate that has not been measured are gone.
    """
    known = _read_known(study)
    missing = {each.trial: each for each in candidates if each.trial not in known}
    for trial_number, candidate in missing.items():
        network = build_network(candidate.recipe.architecture, study.record.task)
        network.load_state_dict(read_weights(candidate.files))
        known[trial_number] = measure_cost(network, study.record.image_input)
    if missing and not is_frozen(location_of(study.paths)):
        text = json.dumps({number: asdict(cost) for number, cost in known.items()})
        write_whole(study.paths.costs, text.encode())
    return {each.name: known[each.trial] for each in candidates}


def _read_known(study: Study) -> dict[int, Cost]:
    try:
        return _ADAPTER.validate_json(study.paths.costs.read_bytes())
    except (OSError, ValidationError):
        return {}  # measured anew

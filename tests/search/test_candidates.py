from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FixedTrial, TrialState
from runs import make_tiny_study

from search.candidates import candidate_pool, find_candidates, list_candidates
from search.data.roles import read_roles
from search.data.store import open_store
from search.errors import NothingToDoError, SearchError
from search.paths import TrialPaths
from search.predictions import write_predictions, write_weights
from search.storage import open_study
from search.study import Study
from spaces.space import suggest_recipe


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Return a study of its own with one complete trial, one pruned and one failed."""
    made = make_tiny_study(tmp_path, name="made", keep=2)
    add_trial(made, TrialState.COMPLETE, log_loss=0.4)
    add_trial(made, TrialState.PRUNED, log_loss=0.5)
    add_trial(made, TrialState.FAIL, log_loss=0.1)
    return made


def add_trial(study: Study, state: TrialState, *, log_loss: float) -> None:
    fixed = FixedTrial(_answers(study))
    recipe = suggest_recipe(fixed, study.record.space, study.record.task)
    attributes: dict[str, Any] = {
        "recipe": recipe.to_json(),
        "log_loss": log_loss,
        "milliseconds": 0.25,
    }
    open_study(study.paths).add_trial(
        optuna.trial.create_trial(
            state=state,
            value=log_loss if state == TrialState.COMPLETE else None,
            user_attrs=attributes,
        )
    )


def _answers(study: Study) -> dict[str, Any]:
    """Return the parameters of the study's first trial, which knows all questions."""
    waiting = open_study(study.paths).get_trials()[0]
    answers: dict[str, Any] = waiting.system_attrs["fixed_params"]
    return answers


def leave(study: Study, files: TrialPaths, *, seed: int) -> np.ndarray:
    """Write weights and predictions as a training leaves them; return those for ens."""
    generator = np.random.default_rng(seed)
    ens = np.empty(0)
    for role in ("stop", "ens", "test"):
        n_images = study.record.role_sizes[role]
        chances = generator.dirichlet(np.ones(len(study.record.class_names)), size=n_images)
        write_predictions(files, role, np.log(chances))
        ens = np.log(chances) if role == "ens" else ens
    write_weights(files, {"weight": torch.zeros(2)})
    return ens


def names_of(study: Study) -> list[str]:
    return [candidate.name for candidate in list_candidates(study)]


def numbers_of(study: Study) -> Sequence[int]:
    return [
        trial.number for trial in study.trials() if trial.user_attrs.get("log_loss") is not None
    ]


def test_snapshots_come_after_their_trial_by_round(study: Study) -> None:
    first, pruned, failed = numbers_of(study)
    for number in (first, pruned, failed):
        leave(study, study.paths.trial(number), seed=number)
    for name in ("raw", "10", "9"):
        leave(study, study.paths.trial(pruned).snapshot(name), seed=0)

    names = names_of(study)

    of_pruned = [f"{pruned}{name}" for name in ("", "@9", "@10", "@raw")]
    assert names == [f"{first}", *of_pruned]


def test_what_is_not_whole_is_no_candidate(study: Study) -> None:
    first, pruned, _ = numbers_of(study)
    leave(study, study.paths.trial(first), seed=0)
    leave(study, study.paths.trial(first).snapshot("1"), seed=0)
    leave(study, study.paths.trial(pruned), seed=0)
    study.paths.trial(first).snapshot("1").predictions("test").unlink()
    study.paths.trial(pruned).weights.unlink()

    assert names_of(study) == [str(first)]


def test_a_pool_holds_the_predictions_in_the_order_asked_for(study: Study) -> None:
    first, pruned, _ = numbers_of(study)
    of_first = leave(study, study.paths.trial(first), seed=1)
    of_pruned = leave(study, study.paths.trial(pruned), seed=2)
    of_snapshot = leave(study, study.paths.trial(first).snapshot("raw"), seed=3)
    best, raw, other = list_candidates(study)

    pool = candidate_pool(study, [other, raw, best], "ens")

    labels = open_store(study.record.store).labels[read_roles(study.paths.roles).ens]
    assert pool.names == (str(pruned), f"{first}@raw", str(first))
    np.testing.assert_allclose(
        pool.log_probabilities, [of_pruned, of_snapshot, of_first], rtol=1e-5
    )
    np.testing.assert_array_equal(pool.labels, labels)
    assert pool.costs is not None
    assert pool.costs.tolist() == [0.25, 0.25, 0.25]


def test_a_study_without_a_finished_trial_has_no_candidates(unstarted: Study) -> None:
    with pytest.raises(NothingToDoError, match="'fresh' has no finished trial to build"):
        list_candidates(unstarted)


def test_candidates_are_found_by_name_in_the_order_asked_for(study: Study) -> None:
    first, pruned, failed = numbers_of(study)
    for number in (first, pruned):
        leave(study, study.paths.trial(number), seed=number)
    leave(study, study.paths.trial(first).snapshot("2"), seed=0)
    study.paths.trial(pruned).weights.unlink()  # who reads them says that they are gone

    found = find_candidates(study, [str(pruned), f"{first}@2"])

    assert [each.trial for each in found] == [pruned, first]
    assert [each.files for each in found] == [
        study.paths.trial(pruned),
        study.paths.trial(first).snapshot("2"),
    ]
    with pytest.raises(SearchError, match=rf"no trial {first} after round 3 any more; `python"):
        find_candidates(study, [f"{first}@3"])
    with pytest.raises(SearchError, match=f"no trial {failed} any more"):
        find_candidates(study, [str(failed)])

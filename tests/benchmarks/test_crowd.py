from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from runs import make_tiny_study

from search.samplers import make_sampler
from search.storage import ask, open_study
from spaces.space import suggest_recipe


@pytest.fixture
def crowd(load_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module, with fewer different trials."""
    module = load_script("crowd")
    monkeypatch.setattr(module, "_N_DIFFERENT", 12)
    return module


def test_a_filled_study_is_one_that_a_worker_can_go_on_with(crowd: Any, tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path, trials=100)

    crowd.fill_study(study, 40)

    opened = open_study(
        study.paths,
        sampler=make_sampler("tpe", seed=0, space=study.record.space, task=study.record.task),
    )
    trials = opened.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(40))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) >= 30
    assert all(len(trial.intermediate_values) == crowd.N_REPORTS for trial in complete)
    assert all(trial.params in [first.params for first in complete[:12]] for trial in complete)
    assert len({trial.value for trial in complete}) == len(complete)
    fresh = ask(opened, 100)
    assert fresh is not None
    assert fresh.number == 40
    suggest_recipe(fresh, study.record.space, study.record.task)
    opened.tell(fresh, 1.0)


def test_a_study_that_is_filled_twice_grows_by_the_difference(crowd: Any, tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path, trials=100)

    crowd.fill_study(study, 20)
    crowd.fill_study(study, 30)

    assert study.counts().complete + study.counts().failed == 30

from collections.abc import Sequence
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.config import StudyConfig
from search.schedule import Plan, plan_trials
from search.session import _length_remarks


def plan_of(**settings: str | int) -> Plan:
    return plan_trials(StudyConfig.model_validate(settings), n_train=1000, n_workers=1)


def trials_of(epochs: Sequence[float]) -> list[FrozenTrial]:
    return [create_trial(value=1.0, user_attrs={"epochs": each}) for each in epochs]


def test_trials_whose_time_leaves_nothing_to_train_are_remarked_upon() -> None:
    (remark,) = _length_remarks(plan_of(trial_budget="40s"), trials_of([0.02, 0.04, 3.0]))

    assert remark.startswith("trials trained for 0.04 epochs in the median: ")
    assert "in the time of one, 40 s;" in remark


def test_trials_without_any_time_to_train_count() -> None:
    attributes: list[dict[str, Any]] = [
        {"epochs": 3.0},
        {"ending": "out of time"},
        {"ending": "out of time", "epochs": 0.5},
    ]
    trials = [create_trial(state=TrialState.PRUNED, user_attrs=each) for each in attributes]

    (remark,) = _length_remarks(plan_of(budget="5m"), trials)

    assert remark.startswith("trials trained for 0.25 epochs")


@pytest.mark.parametrize(
    ("plan", "epochs"),
    [
        (plan_of(trial_budget="40s"), [1.0, 2.0]),
        (plan_of(trial_budget="40s"), []),
        (plan_of(epochs=4), [0.5]),
    ],
)
def test_other_trials_are_not(plan: Plan, epochs: Sequence[float]) -> None:
    assert _length_remarks(plan, trials_of(epochs)) == []

import time

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.config import StudyConfig
from search.schedule import Deadline, Plan, plan_trials, search_deadline


def _trials(*states: TrialState, seconds: float = 10.0) -> list[FrozenTrial]:
    return [
        optuna.trial.create_trial(
            state=state,
            value=0.0 if state == TrialState.COMPLETE else None,
            user_attrs={"seconds": seconds},
        )
        for state in states
    ]


@pytest.mark.parametrize(
    ("n_train", "epochs"), [(1258, 24), (10_000, 24), (40_000, 10), (10**6, 4)]
)
def test_a_trial_sees_400_000_images_between_4_and_24_epochs(n_train: int, epochs: int) -> None:
    plan = plan_trials(StudyConfig(), n_train=n_train, n_workers=2)

    assert (plan.n_epochs, plan.n_rounds, plan.seconds) == (epochs, epochs, None)


def test_stated_epochs_are_kept_and_reported_one_by_one() -> None:
    plan = plan_trials(StudyConfig(epochs=7, budget="1h"), n_train=10_000, n_workers=2)

    assert (plan.n_epochs, plan.n_rounds) == (7, 7)


def test_a_budget_is_shared_among_the_trials_of_all_workers() -> None:
    plan = plan_trials(StudyConfig(budget="1000s", trials=38), n_train=10_000, n_workers=2)

    assert plan.n_epochs is None
    assert plan.seconds == pytest.approx(1000 * 0.95 * 2 / 38)


def test_the_search_leaves_time_for_the_ensemble() -> None:
    deadline = search_deadline(StudyConfig(budget="15m"), started=0.0, n_workers=2)

    assert deadline is not None
    assert deadline.at == 900 - 45
    assert search_deadline(StudyConfig(), started=0.0, n_workers=2) is None


def test_the_first_trials_get_equal_shares() -> None:
    deadline = Deadline(at=time.monotonic() + 100, n_trials=10, n_workers=2)

    share = deadline.share(_trials(TrialState.RUNNING))

    assert share == pytest.approx(20, rel=0.01)


def test_the_last_trial_gets_no_more_than_is_left() -> None:
    deadline = Deadline(at=time.monotonic() + 100, n_trials=3, n_workers=2)
    trials = _trials(TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING)

    assert deadline.share(trials) == pytest.approx(100, rel=0.01)


def test_a_trial_that_cannot_end_is_not_begun() -> None:
    plan = Plan(n_rounds=5, n_epochs=5, seconds=None)
    trials = _trials(TrialState.COMPLETE, TrialState.COMPLETE, seconds=30.0)

    assert Deadline(at=time.monotonic() + 20, n_trials=9, n_workers=1).too_late(trials, plan)
    assert not Deadline(at=time.monotonic() + 40, n_trials=9, n_workers=1).too_late(trials, plan)

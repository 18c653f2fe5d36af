import time

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.config import StudyConfig
from search.rungs import Rungs
from search.schedule import Deadline, Plan, plan_trials, search_deadline, training_end


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


def test_a_trial_may_have_a_budget_of_its_own_whatever_that_of_the_search_is() -> None:
    for config in (StudyConfig(trial_budget="30s"), StudyConfig(trial_budget="30s", budget="1h")):
        plan = plan_trials(config, n_train=10_000, n_workers=2)

        assert (plan.n_epochs, plan.seconds, plan.n_rounds, plan.rungs) == (None, 30.0, 10, None)


def test_the_budget_of_a_trial_with_rungs_is_that_of_a_whole_one() -> None:
    config = StudyConfig(trial_budget="2m", pruner="rungs")

    plan = plan_trials(config, n_train=10_000, n_workers=2)

    assert (plan.seconds, plan.rungs) == (120.0, Rungs(rounds=(3, 5), eta=2))


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


def test_trials_with_rungs_are_so_much_longer_that_the_mean_one_takes_its_part() -> None:
    config = StudyConfig(budget="1000s", trials=38, pruner="rungs", eta=2, rungs=2)

    plan = plan_trials(config, n_train=10_000, n_workers=2)

    # Rungs after 3 and 5 of 10 rounds: 3 + 2 / 2 + 5 / 4 rounds in the mean.
    assert plan.rungs == Rungs(rounds=(3, 5), eta=2)
    assert plan.expected_share == pytest.approx(0.525)
    assert plan.seconds == pytest.approx(1000 * 0.95 * 2 / 38 / 0.525)


def test_stated_epochs_are_those_of_a_whole_trial_with_rungs() -> None:
    plan = plan_trials(StudyConfig(epochs=8, pruner="rungs"), n_train=10_000, n_workers=2)

    assert (plan.n_epochs, plan.n_rounds, plan.seconds) == (8, 8, None)
    assert plan.rungs == Rungs(rounds=(2, 4), eta=2)


def test_only_the_pruner_of_that_name_has_rungs() -> None:
    assert plan_trials(StudyConfig(rungs=3), n_train=10_000, n_workers=2).rungs is None


def test_a_whole_trial_may_take_its_part_of_what_those_leave_that_end_early() -> None:
    deadline = Deadline(at=time.monotonic() + 100, n_trials=10, n_workers=1)

    assert deadline.share(_trials(TrialState.RUNNING), expected_share=0.5) == pytest.approx(
        20, rel=0.01
    )


def test_the_last_trials_leave_time_for_each_other_though_all_may_pass() -> None:
    # One of two that are left: its part is 50 s, and no more than half of the other's is taken.
    deadline = Deadline(at=time.monotonic() + 100, n_trials=2, n_workers=1)

    assert deadline.share(_trials(TrialState.RUNNING), expected_share=0.5) == pytest.approx(
        75, rel=0.01
    )


def test_rungs_do_not_change_how_late_a_trial_may_begin() -> None:
    plain = Plan(n_rounds=8, n_epochs=None, seconds=30.0)
    longer = Plan(n_rounds=8, n_epochs=None, seconds=60.0, rungs=Rungs(rounds=(2, 4), eta=2))

    for plan in (plain, longer):
        assert Deadline(at=time.monotonic() + 9, n_trials=9, n_workers=1).too_late([], plan)
        assert not Deadline(at=time.monotonic() + 12, n_trials=9, n_workers=1).too_late([], plan)


def test_a_trial_that_cannot_end_is_not_begun() -> None:
    plan = Plan(n_rounds=5, n_epochs=5, seconds=None)
    trials = _trials(TrialState.COMPLETE, TrialState.COMPLETE, seconds=30.0)

    assert Deadline(at=time.monotonic() + 20, n_trials=9, n_workers=1).too_late(trials, plan)
    assert not Deadline(at=time.monotonic() + 40, n_trials=9, n_workers=1).too_late(trials, plan)


def test_a_budget_is_shared_between_the_search_and_what_is_trained_after_it() -> None:
    alone = StudyConfig(budget="1000s", trials=90)
    seeds = StudyConfig(budget="1000s", trials=90, seeds=11)
    folds = StudyConfig(budget="1000s", trials=90, folds=5, max_members=20)  # 200 trainings

    ends = [search_deadline(each, started=0.0, n_workers=2) for each in (alone, seeds, folds)]
    plans = [plan_trials(each, n_train=1000, n_workers=2) for each in (alone, seeds, folds)]

    assert [end.at for end in ends if end] == pytest.approx([950, 855, 475])
    assert [training_end(each, started=0.0) for each in (alone, seeds, folds)] == [950] * 3
    assert [plan.seconds for plan in plans] == pytest.approx([190 / 9, 19, 95 / 9])
    assert training_end(StudyConfig(seeds=3), started=0.0) is None


def test_an_order_is_too_late_when_less_is_left_than_it_takes() -> None:
    deadline = Deadline(at=time.monotonic() + 50, n_trials=2, n_workers=1)
    plan = Plan(n_rounds=2, n_epochs=2, seconds=None)
    short, long = (
        optuna.trial.create_trial(
            state=TrialState.WAITING, user_attrs={"expected_seconds": seconds}
        )
        for seconds in (20.0, 200.0)
    )

    assert not deadline.too_late([short, long], plan)
    assert deadline.too_late([long, short], plan)

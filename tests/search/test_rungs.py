from collections.abc import Sequence

import optuna
import pytest
from optuna.study import StudyDirection

from search.rungs import RungPruner, Rungs, place_rungs

RUNGS = Rungs(rounds=(2, 4), eta=2)


def make_study(
    *, direction: StudyDirection = StudyDirection.MINIMIZE, n_startup_trials: int = 3
) -> optuna.Study:
    pruner = RungPruner(RUNGS, n_rounds=8, n_startup_trials=n_startup_trials)
    return optuna.create_study(pruner=pruner, direction=direction)


def run(study: optuna.Study, values: Sequence[float]) -> int:
    """Report values round by round, and return the round at which the trial ended."""
    trial = study.ask()
    for step, value in enumerate(values, start=1):
        trial.report(value, step)
        if step < len(values) and trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return step
    study.tell(trial, values[-1])
    return len(values)


@pytest.mark.parametrize(
    ("n_rounds", "n_rungs", "eta", "rounds"),
    [
        (24, 2, 2, (6, 12)),
        (10, 2, 2, (3, 5)),
        (27, 3, 3, (1, 3, 9)),
        (3, 2, 2, (1, 2)),
        (2, 2, 2, (1,)),
    ],
)
def test_each_rung_is_eta_times_as_far_as_the_one_before(
    n_rounds: int, n_rungs: int, eta: int, rounds: tuple[int, ...]
) -> None:
    assert place_rungs(n_rounds, n_rungs=n_rungs, eta=eta) == Rungs(rounds=rounds, eta=eta)


def test_a_trial_of_one_round_has_no_rungs() -> None:
    assert place_rungs(1, n_rungs=2, eta=2) is None


def test_the_mean_trial_takes_what_those_take_that_pass() -> None:
    # All take 2 of 8 rounds, half of them 2 more, a quarter the last 4: 2 + 1 + 1 of 8.
    assert RUNGS.expected_share(8) == 0.5


def test_half_of_what_was_seen_at_a_rung_goes_on_the_first_always() -> None:
    study = make_study()

    ended = [run(study, [9.0, value, 9.0, 9.0]) for value in (5.0, 6.0, 4.0, 7.0, 5.0)]

    # Of one: passes. 6 of (5, 6): not. 4: the best. 7: the last of four. 5: equal to the second
    # of five, of whom three pass.
    assert ended == [4, 2, 4, 2, 4]


def test_between_rungs_nothing_ends_a_trial() -> None:
    study = make_study()
    for _ in range(6):
        run(study, [1.0] * 8)

    assert run(study, [99.0, 1.0, 99.0, 1.0, 99.0, 1.0, 1.0, 1.0]) == 8


def test_a_score_that_rises_passes_from_above() -> None:
    study = make_study(direction=StudyDirection.MAXIMIZE)

    assert [run(study, [0.1, value, 0.1]) for value in (0.5, 0.4, 0.6)] == [3, 2, 3]


def test_trials_that_still_run_or_wait_count_at_a_rung() -> None:
    study = make_study()
    running = study.ask()
    running.report(1.0, 2)

    assert run(study, [3.0, 2.0, 3.0]) == 2


def test_late_in_the_last_schedule_a_trial_is_compared_with_complete_ones_at_its_round() -> None:
    study = make_study()
    for value in (1.0, 2.0, 3.0):
        run(study, [-value] * 5 + [value] * 3)

    # The last schedule is rounds 5 to 8, its middle 6. The best round of all is at a rung.
    assert run(study, [-4.0] * 5 + [2.1] * 3) == 6
    assert run(study, [-5.0] * 5 + [1.9] * 3) == 8


def test_late_pruning_waits_for_enough_complete_trials() -> None:
    study = make_study(n_startup_trials=4)
    for _ in range(3):
        run(study, [0.0] * 5 + [1.0] * 3)

    assert run(study, [0.0] * 5 + [9.0] * 3) == 8


def test_a_trial_that_is_trained_again_to_a_rung_it_passed_passes_it() -> None:
    study = make_study()
    run(study, [1.0] * 8)
    trial = study.ask()
    for step, value in enumerate((9.0, 0.5, 9.0), start=1):
        trial.report(value, step)

    # It was handed back after round 3; better ones came to the rung meanwhile.
    run(study, [0.1] * 8)
    run(study, [0.2] * 8)

    assert not trial.should_prune()

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from curves import POINT
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from search.curve_points import CurvePoint
from search.devices import Slot
from search.live import LiveView
from search.places import StoppedSlot
from search.study import Study
from search.supervisor import Snapshot


def make_trial(number: int, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    trial = create_trial(
        state=state,
        value=0.5 + number if state == TrialState.COMPLETE else None,
        intermediate_values={1: 0.75},
        user_attrs={"log_loss": 0.5 + number, "accuracy": 0.9, "seconds": 2.0, "slot": 1}
        | ({"ending": "pruned after round 1"} if state == TrialState.PRUNED else {}),
    )
    trial.number = number
    return trial


def make_snapshot(study: Study, trials: Sequence[FrozenTrial]) -> Snapshot:
    return Snapshot(
        trials=tuple(trials),
        record=study.record,
        n_trials=4,
        n_slots=2,
        n_alive=2,
        seconds=10.0,
        seconds_left=None,
    )


def show(study: Study, *stages: Sequence[FrozenTrial], terminal: bool) -> str:
    """Return what a view writes when it is shown one moment after the other."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    with LiveView(console=console) as view:
        for trials in stages:
            view.show(make_snapshot(study, trials))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_each_trial_is_told_once(unstarted: Study) -> None:
    running = make_trial(1, TrialState.RUNNING)
    pruned = make_trial(1, TrialState.PRUNED)

    told = show(unstarted, [], [make_trial(0), running], [make_trial(0), pruned], terminal=False)

    assert told == (
        "[1/4] trial 0: complete, log-loss 0.5000, accuracy 90.00 %, 2.0 s\n"
        "[2/4] trial 1: pruned, log-loss 1.5000, accuracy 90.00 %, 2.0 s, pruned after round 1\n"
    )


def test_what_was_finished_before_is_not_told_again(unstarted: Study) -> None:
    told = show(unstarted, [make_trial(0)], [make_trial(0), make_trial(1)], terminal=False)

    assert told.splitlines() == [
        "[2/4] trial 1: complete, log-loss 1.5000, accuracy 90.00 %, 2.0 s"
    ]


def test_a_failed_trial_is_told_and_its_number_is_not_used_up(unstarted: Study) -> None:
    failed = create_trial(state=TrialState.FAIL, user_attrs={"failure": "ValueError: no"})
    failed.number = 0

    told = show(unstarted, [], [failed], [failed, make_trial(1)], terminal=False)

    assert told.splitlines()[0] == "[0/4] trial 0: fail, ValueError: no"
    assert told.splitlines()[1].startswith("[1/4] trial 1: complete")


@pytest.mark.parametrize(
    "words",
    ["fresh", "1/4 trials", "10 s", "about 30 s left", "best so far: trial 0, log-loss 0.5000"],
)
def test_a_terminal_shows_counts_time_left_and_the_best(words: str, unstarted: Study) -> None:
    drawn = show(unstarted, [], [make_trial(0), make_trial(1, TrialState.RUNNING)], terminal=True)

    assert words in drawn


def tell_ensembles(study: Study, *points: CurvePoint, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=250, color_system=None)
    with LiveView(console=console) as view:
        view.show(make_snapshot(study, []))
        for point in points:
            view.show_ensemble(point)
            view.show(make_snapshot(study, []))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_the_newest_ensemble(unstarted: Study) -> None:
    newer = replace(POINT, n_finished=11, members=(1, 2), n_members=2)

    drawn = tell_ensembles(unstarted, POINT, newer, terminal=True)

    assert "ensemble so far: log-loss 0.6120" in drawn
    assert "(2 members, +2.00 points on trial 7)" in drawn


def test_without_a_terminal_the_ensemble_is_told_every_ten_trials(unstarted: Study) -> None:
    points = [replace(POINT, n_finished=n_finished) for n_finished in (8, 9, 10, 12, 25, 29)]

    told = tell_ensembles(unstarted, *points, terminal=False)

    assert [line.split()[0] for line in told.splitlines()] == ["[10/4]", "[25/4]"]


def test_the_ensemble_of_an_earlier_run_is_not_told_again(unstarted: Study) -> None:
    assert tell_ensembles(unstarted, replace(POINT, n_finished=10), terminal=False) == ""


def test_a_terminal_shows_how_many_images_are_decoded() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)

    with LiveView(console=console) as view:
        view.show_decoding(3000, 9000)

    assert isinstance(console.file, io.StringIO)
    assert "decoding images" in console.file.getvalue()
    assert "3,000 of 9,000" in console.file.getvalue()


def test_what_is_trained_after_the_search_is_counted_anew_and_told_by_its_name(
    unstarted: Study,
) -> None:
    config = unstarted.record.config.replaced(name="folds-5-of-fresh")
    record = unstarted.record.model_copy(update={"config": config, "ordered": True})
    fold = make_trial(0)
    fold.set_user_attr("order", "7-fold-2of5")

    for terminal in (False, True):
        console = Console(
            file=io.StringIO(), force_terminal=terminal, width=100, color_system=None
        )
        with LiveView(console=console) as view:
            view.show(make_snapshot(unstarted, [make_trial(0)]))
            view.show(replace(make_snapshot(unstarted, []), record=record))
            view.show(replace(make_snapshot(unstarted, [fold]), record=record))
        assert isinstance(console.file, io.StringIO)
        told = console.file.getvalue()
        if terminal:
            assert "folds-5-of-fresh" in told
            assert "1/4 trainings" in told
            assert "7-fold-2of5" in told
        else:
            assert told == (
                "[1/4] trial 7 without fold 2 of 5: complete, log-loss 0.5000, "
                "accuracy 90.00 %, 2.0 s\n"
            )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_slot_that_is_stopped_is_shown_with_its_reason(
    unstarted: Study, *, terminal: bool
) -> None:
    slot = Slot(number=1, device="cuda:1", n_threads=1)
    stopped = StoppedSlot(slot=slot, reason="its worker died 3 times at once, last by signal 9")
    snapshot = replace(make_snapshot(unstarted, []), stopped_slots=(stopped,))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)

    with LiveView(console=console) as view:
        view.show(snapshot)
        view.show(snapshot)

    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    sentence = "slot 1 (cuda:1) is stopped: its worker died 3 times at once, last by signal 9"
    assert sentence in told
    assert terminal or told == f"{sentence}\n"

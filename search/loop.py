"""What a worker does all day: ask for a trial, run it, tell the study how it ended."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.trial import TrialState

from search.devices import Slot
from search.errors import DiskFullError, in_one_line
from search.heartbeats import beating
from search.objective import run_trial
from search.panel import Panel
from search.paths import StudyPaths
from search.record import read_record
from search.room import needed_bytes, wait_for_room
from search.rounds import TrialTime
from search.samplers import make_pruner, make_sampler
from search.schedule import Deadline
from search.storage import (
    alone,
    ask,
    give_back,
    hand_back_own,
    is_ours,
    is_over,
    open_study,
    tell,
)
from search.training import Interrupted
from search.workplace import Workplace, open_workplace

logger = logging.getLogger(__name__)

# What the last trial is fitted to: one that is timed a little too short would be cut off.
_SHARE_OF_THE_REST = 0.9


def run_trials(  # noqa: PLR0913 - what a worker is told, each by its name
    paths: StudyPaths,
    slot: Slot,
    stopping: Callable[[], bool],
    *,
    n_trials: int,
    deadline: Deadline | None,
    panel: Panel | None = None,
    images: Path | None = None,
) -> None:
    """Run trials until the study has enough, time is up, or the worker shall stop.

    Args:
        paths: Files of the study.
        slot: Where to compute.
        stopping: Whether the worker shall stop; the running trial is then handed back.
        n_trials: Finished trials that the study shall have.
        deadline: When the search must be over, if at all.
        panel: Where a supervisor looks for signs of life, if there is one.
        images: Folder of the decoded images on this host; default: where the study has them.
    """
    record = read_record(open_study(paths))
    record = record.model_copy(update={"store": images or record.store})
    config, plan = record.config, record.plan
    study = open_study(
        paths,
        sampler=make_sampler(
            config.sampler, seed=config.seed, space=record.space, task=record.task
        ),
        pruner=make_pruner(config.pruner, n_rounds=plan.n_rounds, rungs=plan.rungs),
    )
    place = open_workplace(paths, record, slot, stopping, panel)
    while not stopping():
        try:
            if not _run_next(study, place, n_trials, deadline):
                break
        except DiskFullError as error:
            logger.warning("the worker pauses: %s", error)
            _pause(study, place, deadline)


def _run_next(
    study: optuna.Study, place: Workplace, n_trials: int, deadline: Deadline | None
) -> bool:
    """Run one more trial; return whether there may be another."""
    plan, trials = place.record.plan, study.get_trials(deepcopy=False)
    if deadline and deadline.too_late(trials, plan):
        return False
    if not _wait_for_room(study, place, deadline):
        return False
    trial = ask(study, n_trials, only_waiting=place.record.ordered)
    if trial is None:
        return False
    seconds = _seconds(study, place, deadline)
    _run(study, trial, place, TrialTime(seconds=seconds, deadline=deadline))
    return True


def _seconds(study: optuna.Study, place: Workplace, deadline: Deadline | None) -> float | None:
    """Return the seconds that the schedule of the trial that begins is fitted to, if any."""
    plan = place.record.plan
    if deadline is None or plan.seconds is None:
        return plan.seconds
    if place.record.config.trial_budget is not None:
        return min(plan.seconds, _SHARE_OF_THE_REST * deadline.left())
    trials = study.get_trials(deepcopy=False)
    return deadline.share(trials, expected_share=plan.expected_share)


def _wait_for_room(
    study: optuna.Study, place: Workplace, deadline: Deadline | None, *, has_failed: bool = False
) -> bool:
    """Wait until a trial would have room on the disk; return whether it has."""

    def stopping() -> bool:
        place.panel.beat()  # it waits, it does not hang
        return place.stopping() or (deadline is not None and deadline.left() == 0)

    return wait_for_room(
        place.paths,
        needed_bytes(place.record, study.get_trials(deepcopy=False)),
        stopping,
        has_failed=has_failed,
    )


def _pause(study: optuna.Study, place: Workplace, deadline: Deadline | None) -> None:
    """Wait until there is room, then hand back the trial that had none.

    Where the wait ends otherwise, the supervisor hands it back, another host, or the next run.
    """
    place.panel.end_trial()  # a worker that ends while it waits has not died of the trial
    while _wait_for_room(study, place, deadline, has_failed=True):
        try:
            hand_back_own(study)
        except DiskFullError:
            continue  # another worker was faster
        return


def _run(
    study: optuna.Study, trial: optuna.Trial, place: Workplace, time_given: TrialTime
) -> None:
    """Run one trial and tell the study how it ended; nothing that a trial does ends the worker."""
    place.panel.begin_trial(trial.number)
    try:
        with beating(study, trial) as lost:
            here = replace(place, stopping=lambda: place.stopping() or lost())
            outcome = run_trial(trial, here, time_given)
        counts = tell(study, trial, outcome.state, outcome.value)
        if counts:
            ending = outcome.state.name.lower()
            logger.info("trial %d: %s, %s", trial.number, ending, outcome.value)
    except DiskFullError:
        raise
    except Interrupted:
        gone = "handed back" if give_back(study, trial) else "taken over by another process"
        logger.info("trial %d: %s", trial.number, gone)
        place.panel.end_trial()
        return
    except optuna.exceptions.UpdateFinishedTrialError:
        counts = False
    except Exception as error:  # its reason is kept with the trial
        logger.exception("trial %d: failed", trial.number)
        counts = _fail(study, trial, error)
    if not counts:
        logger.warning("trial %d: finished by somebody else, its result is dropped", trial.number)
    if counts or is_over(study, trial):
        place.paths.trial(trial.number).checkpoint.unlink(missing_ok=True)
    place.panel.end_trial()


def _fail(study: optuna.Study, trial: optuna.Trial, error: Exception) -> bool:
    with alone(study):
        if not is_ours(study, trial):
            return False
        trial.set_user_attr("failure", in_one_line(error))
        return tell(study, trial, TrialState.FAIL)

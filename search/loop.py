"""What a worker does all day: ask for a trial, run it, tell the study how it ended."""

import logging
import os
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from search.devices import Slot
from search.errors import in_one_line
from search.objective import run_trial
from search.panel import Panel
from search.paths import StudyPaths
from search.record import read_record
from search.rounds import TrialTime
from search.samplers import make_pruner, make_sampler
from search.schedule import Deadline
from search.storage import ask, hand_back, open_study
from search.training import Interrupted
from search.workplace import Workplace, open_workplace

logger = logging.getLogger(__name__)


def run_trials(
    paths: StudyPaths,
    slot: Slot,
    stopping: Callable[[], bool],
    *,
    n_trials: int,
    deadline: Deadline | None,
    panel: Panel | None = None,
) -> None:
    """Run trials until the study has enough, time is up, or the worker shall stop.

    Args:
        paths: Files of the study.
        slot: Where to compute.
        stopping: Whether the worker shall stop; the running trial is then handed back.
        n_trials: Finished trials that the study shall have.
        deadline: When the search must be over, if at all.
        panel: Where a supervisor looks for signs of life, if there is one.
    """
    record = read_record(open_study(paths))
    config, plan = record.config, record.plan
    study = open_study(
        paths,
        sampler=make_sampler(
            config.sampler, seed=config.seed, space=record.space, task=record.task
        ),
        pruner=make_pruner(config.pruner, n_rounds=plan.n_rounds),
    )
    place = open_workplace(paths, record, slot, stopping, panel or Panel())
    while not stopping():
        if deadline and deadline.too_late(study.get_trials(deepcopy=False), plan):
            break
        trial = ask(study, paths, n_trials, process=os.getpid())
        if trial is None:
            break
        seconds = plan.seconds
        if deadline and seconds is not None:
            seconds = deadline.share(study.get_trials(deepcopy=False))
        _run(study, trial, place, TrialTime(seconds=seconds, deadline=deadline))


def _run(
    study: optuna.Study, trial: optuna.Trial, place: Workplace, time_given: TrialTime
) -> None:
    """Run one trial and tell the study how it ended; nothing that a trial does ends the worker."""
    place.panel.begin_trial(trial.number)
    try:
        outcome = run_trial(trial, place, time_given)
        study.tell(trial, outcome.value, outcome.state)
    except Interrupted:
        hand_back(study, study._storage.get_trial(trial._trial_id), suspect=False)
        logger.info("trial %d: handed back", trial.number)
        place.panel.end_trial()
        return
    except optuna.exceptions.UpdateFinishedTrialError:
        logger.warning("trial %d: finished by somebody else, its result is dropped", trial.number)
    except Exception as error:  # its reason is kept with the trial
        logger.exception("trial %d: failed", trial.number)
        _fail(study, trial, error)
    else:
        logger.info("trial %d: %s, %s", trial.number, outcome.state.name.lower(), outcome.value)
    place.paths.trial(trial.number).checkpoint.unlink(missing_ok=True)
    place.panel.end_trial()


def _fail(study: optuna.Study, trial: optuna.Trial, error: Exception) -> None:
    try:
        trial.set_user_attr("failure", in_one_line(error))
        study.tell(trial, state=TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        logger.warning("trial %d: finished by somebody else", trial.number)

"""The Optuna study: making and opening it, asking for trials, telling how they ended.

Where it is stored, `search.location` knows; nothing here depends on it.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.backends import PatientStorage, SQLiteStorage, shared_storage, storage_errors
from search.database import look_into
from search.drivers import explain, is_no_database
from search.errors import StorageError
from search.location import Location, Server, SQLiteFile, location_of
from search.new_storage import new_storage
from search.owners import ATTRIBUTE, is_owned, owner_of, this_process
from search.paths import StudyPaths

MAX_ATTEMPTS = 3


def create_study(
    paths: StudyPaths,
    direction: StudyDirection,
    *,
    metric: str,
    attributes: Mapping[str, object],
    first_trials: Sequence[Mapping[str, object]],
    location: Location | None = None,
) -> None:
    """Make the study before any worker starts.

    It gets its name when all is in it; so a study that is there is complete.

    Args:
        paths: Files of the study; its folder must exist.
        direction: Whether the objective falls or rises.
        metric: Its name, for the dashboard.
        attributes: What describes the study, as JSON values.
        first_trials: Parameters of the trials that are run first.
        location: Where to store it; default: in its folder.

    Raises:
        StorageError: The database cannot be made, or has a study of that name.
    """
    place = SQLiteFile(paths.database) if location is None else location
    with new_storage(paths, place) as (storage, name):
        study = optuna.create_study(storage=storage, study_name=name, direction=direction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([metric])
        for key, value in attributes.items():
            study.set_user_attr(key, value)
        for parameters in first_trials:
            study.enqueue_trial(dict(parameters))


def open_study(
    paths: StudyPaths,
    *,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """Open an existing study; each process opens its own.

    Args:
        paths: Files of the study.
        sampler: How trials are sampled; only a worker needs one.
        pruner: How trials are pruned; only a worker needs one.

    Returns:
        The study, with a cache of its finished trials.

    Raises:
        NothingToDoError: There is no such study.
        StorageError: There is no database of this study, or it is damaged or out of reach.
    """
    with look_into(paths):
        pass  # it is there, and is the study's
    location = location_of(paths)
    problems: tuple[type[Exception], ...] = (RuntimeError, *storage_errors())
    try:
        return optuna.load_study(
            storage=open_storage(paths), study_name=paths.name, sampler=sampler, pruner=pruner
        )
    except problems as error:
        problem = "cannot be used"
        if isinstance(error, RuntimeError) or is_no_database(error):  # or of another version
            problem = f"not the database of study {paths.name!r}"
        raise StorageError(f"{location}: {problem}: {explain(error)}.") from error


def open_storage(paths: StudyPaths) -> PatientStorage:
    """Open the database of an existing study, without a cache."""
    location = location_of(paths)
    if isinstance(location, Server):
        return shared_storage(location, paths.name)
    return SQLiteStorage(location.path, paths.trial_lock)


def backend_of(study: optuna.Study) -> PatientStorage:
    """Return the storage behind the cache of a study that `open_study` opened."""
    storage: Any = study._storage  # Optuna has no public way to what is behind its cache
    backend: PatientStorage = storage._backend
    return backend


def alone(study: optuna.Study) -> AbstractContextManager[object]:
    """Return the lock around asking for trials and changes of who runs them.

    Whoever holds it may take it again; no other process, on any host, holds it meanwhile.
    """
    return backend_of(study).alone()


def ask(study: optuna.Study, n_trials: int, *, only_waiting: bool = False) -> optuna.Trial | None:
    """Take a waiting trial, or begin a new one while the study has fewer than `n_trials`.

    Counting and asking are one step under the lock, so that any number of workers together never
    begin a trial too many.

    Args:
        study: The study.
        n_trials: Trials that shall be finished or running when this returns.
        only_waiting: Whether none is begun that does not wait.

    Returns:
        A running trial that belongs to this process, or None when the study has enough.
    """
    with alone(study):
        trials = study.get_trials(deepcopy=False)
        if n_counted(trials) >= n_trials or (only_waiting and not has_waiting(trials)):
            return None
        trial = study.ask()
        trial.set_user_attr(ATTRIBUTE, this_process().to_json())
    return trial


def n_counted(trials: Sequence[FrozenTrial]) -> int:
    """Count the trials that are finished or running.

    A failed one is replaced, and a waiting one waits until its turn comes: a study of 4 trials has
    4, though more good first configurations are in the queue.
    """
    return sum(trial.state not in (TrialState.FAIL, TrialState.WAITING) for trial in trials)


def has_waiting(trials: Sequence[FrozenTrial]) -> bool:
    """Tell whether a trial waits for its turn."""
    return any(trial.state == TrialState.WAITING for trial in trials)


def tell(
    study: optuna.Study, trial: optuna.Trial, state: TrialState, value: float | None = None
) -> bool:
    """Say how a trial of this process ended.

    Returns:
        Whether it counts: somebody may have ended it in the dashboard, and a trial of a host that
        gave no sign of life for long has been given to another process.
    """
    with alone(study):
        if not is_ours(study, trial):
            return False
        try:
            study.tell(trial, value, state)
        except UpdateFinishedTrialError:
            return False
    return True


def give_back(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Hand back an interrupted trial of this process; tell whether it was still its own."""
    with alone(study):
        return is_ours(study, trial) and hand_back(study, _now(study, trial), suspect=False)


def is_ours(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Tell whether a trial still runs, and in this process."""
    now = _now(study, trial)
    return now.state == TrialState.RUNNING and owner_of(now.user_attrs) == this_process()


def is_over(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Tell whether a trial is finished, whoever said so."""
    return _now(study, trial).state.is_finished()


def hand_back(study: optuna.Study, trial: FrozenTrial, *, suspect: bool) -> bool:
    """Put an interrupted trial back into the queue, under the same number.

    Its parameters and reports stay, and its checkpoint is found by its number; so it goes on where
    it was, is counted once, and no failed twin confuses sampler or pruner. (Optuna's own retry
    callback makes a new trial instead and leaves a failed one behind.)

    Args:
        study: The study.
        trial: A trial that was running in a process which no longer does.
        suspect: Whether the trial itself may have ended its process.

    Returns:
        Whether it will run again; a suspect that ended its process `MAX_ATTEMPTS` times without
        finishing a round in between fails instead.
    """
    storage, trial_id = study._storage, trial._trial_id  # Optuna has no public way to do this
    deaths, n_reports_before = trial.user_attrs.get("deaths", [0, 0])
    n_reports = len(trial.intermediate_values)
    deaths = (deaths if n_reports == n_reports_before else 0) + suspect
    try:
        storage.set_trial_user_attr(trial_id, "deaths", [deaths, n_reports])
        if deaths >= MAX_ATTEMPTS:
            reason = f"its process ended {deaths} times before a round was finished"
            storage.set_trial_user_attr(trial_id, "failure", reason)
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return False
        storage.set_trial_user_attr(trial_id, ATTRIBUTE, None)
        storage.set_trial_state_values(trial_id, TrialState.WAITING)
    except UpdateFinishedTrialError:
        return False
    return True


def hand_back_own(study: optuna.Study) -> None:
    """Hand back what this process was running when it could not write any more.

    Under the lock a running trial without an owner is one that was just begun and could not be
    given its owner: it is nobody's.

    Args:
        study: The study; this process now runs none of its trials.
    """
    me = this_process()
    with alone(study):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not is_owned(trial.user_attrs) or owner_of(trial.user_attrs) == me:
                hand_back(study, trial, suspect=False)


def _now(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial:
    return study._storage.get_trial(trial._trial_id)

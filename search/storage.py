"""The Optuna study: opening it, asking for trials and handing interrupted ones back.

SQLite is shared by all workers of a machine and by the dashboard. Stock settings lose trials with
`database is locked`, and any unpatched SQLite storage may start a waiting trial twice, since
`SELECT ... FOR UPDATE` does nothing there. Hence write-ahead logging, a long busy timeout, and a
file lock around every change of a trial's state.
"""

import json
import sqlite3
import warnings
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import SQLAlchemyError

from search.database import BUSY_TIMEOUT_SECONDS, explain, look_into
from search.disk import is_full
from search.errors import DiskFullError, StorageError
from search.frozen_trials import read_trials
from search.paths import StudyPaths

MAX_ATTEMPTS = 3
_NO_PROCESS = 0


class SQLiteStorage(RDBStorage):
    """`RDBStorage` whose changes of trial state are atomic between processes."""

    def __init__(self, path: Path, lock_path: Path) -> None:
        self._lock_path = lock_path
        self._lock = state_lock(lock_path)
        super().__init__(
            URL.create("sqlite", database=str(path)).render_as_string(),
            engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}},
        )
        self._tune_connections()

    def __getstate__(self) -> dict[Any, Any]:
        """Leave out what belongs to this process."""
        state = super().__getstate__()
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Open the database anew; the engine that was sent had lost its settings."""
        super().__setstate__(state)
        self._lock = state_lock(self._lock_path)
        self._tune_connections()

    def _tune_connections(self) -> None:
        event.listen(self.engine, "connect", _set_pragmas)
        event.listen(self.engine, "handle_error", _explain)
        self.engine.dispose()  # drops the connections that were made before the listener

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change a trial's state while no other process does."""
        with self._lock:
            return super().set_trial_state_values(trial_id, state, values)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read many trials at once, in a tenth of the time.

        A method of Optuna's own; should it be called otherwise one day, all is read as before.
        """
        self.get_study_name_from_id(study_id)  # raises KeyError where there is none
        with self.engine.connect() as pooled:
            connection: Any = pooled.connection.driver_connection
            try:
                found = connection.execute(
                    "SELECT trial_id FROM trials WHERE study_id = ? AND "
                    "(trial_id > ? OR trial_id IN (SELECT value FROM json_each(?))) "
                    "ORDER BY trial_id",
                    (study_id, trial_id_greater_than, json.dumps(list(included_trial_ids))),
                )
                trials = read_trials(connection, [trial_id for (trial_id,) in found])
            except sqlite3.DatabaseError as error:
                raise _unusable(self.engine, error) from error
        return [trial for trial in trials if states is None or trial.state in states]


def state_lock(path: Path) -> FileLock:
    """Return the lock around changes of trial state; whoever holds it may take it again."""
    return FileLock(path, is_singleton=True)


def create_study(
    paths: StudyPaths,
    direction: StudyDirection,
    *,
    metric: str,
    attributes: Mapping[str, object],
    first_trials: Sequence[Mapping[str, object]],
) -> None:
    """Make the database and the study in it, before any worker starts.

    The file gets its name when all is in it; so a study that is there is complete.

    Args:
        paths: Files of the study; its folder must exist.
        direction: Whether the objective falls or rises.
        metric: Its name, for the dashboard.
        attributes: What describes the study, as JSON values.
        first_trials: Parameters of the trials that are run first.

    Raises:
        StorageError: The database cannot be made.
    """
    unfinished = paths.database.with_suffix(".db.new")
    for suffix in ("", "-wal", "-shm"):
        unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
    try:
        storage = SQLiteStorage(unfinished, paths.trial_lock)
        study = optuna.create_study(storage=storage, study_name=paths.name, direction=direction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([metric])
        for key, value in attributes.items():
            study.set_user_attr(key, value)
        for parameters in first_trials:
            study.enqueue_trial(dict(parameters))
        storage.remove_session()
        storage.engine.dispose()  # the last connection to close empties the write-ahead log
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StorageError(f"{paths.database}: cannot be made: {explain(error)}.") from error
    unfinished.replace(paths.database)


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
        StorageError: The file is there but is no database of a study.
    """
    with look_into(paths):
        pass  # it is there, and is the study's
    try:
        return optuna.load_study(
            storage=SQLiteStorage(paths.database, paths.trial_lock),
            study_name=paths.name,
            sampler=sampler,
            pruner=pruner,
        )
    except (SQLAlchemyError, sqlite3.Error, RuntimeError) as error:
        raise StorageError(
            f"{paths.database}: not the database of study {paths.name!r}: {explain(error)}."
        ) from error


def ask(
    study: optuna.Study,
    paths: StudyPaths,
    n_trials: int,
    *,
    process: int,
    only_waiting: bool = False,
) -> optuna.Trial | None:
    """Take a waiting trial, or begin a new one while the study has fewer than `n_trials`.

    Counting and asking are one step under the lock, so that any number of workers together never
    begin a trial too many.

    Args:
        study: The study.
        paths: Files of the study.
        n_trials: Trials that shall be finished or running when this returns.
        process: Number of the process that runs it, by which an orphan is known.
        only_waiting: Whether none is begun that does not wait.

    Returns:
        A running trial, or None when the study has enough.
    """
    with state_lock(paths.trial_lock):
        trials = study.get_trials(deepcopy=False)
        if n_counted(trials) >= n_trials or (only_waiting and not has_waiting(trials)):
            return None
        trial = study.ask()
        trial.set_user_attr("process", process)
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
        storage.set_trial_user_attr(trial_id, "process", _NO_PROCESS)
        if deaths >= MAX_ATTEMPTS:
            reason = f"its process ended {deaths} times before a round was finished"
            storage.set_trial_user_attr(trial_id, "failure", reason)
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return False
        storage.set_trial_state_values(trial_id, TrialState.WAITING)
    except optuna.exceptions.UpdateFinishedTrialError:
        return False
    return True


def hand_back_own(study: optuna.Study, paths: StudyPaths, *, process: int) -> None:
    """Hand back what this process was running when it could not write any more.

    Under the lock a running trial without a process is one that was just begun and could not be
    given its process: it is nobody's.

    Args:
        study: The study.
        paths: Files of the study.
        process: Number of this process, which now runs no trial.
    """
    with state_lock(paths.trial_lock):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("process") in (None, _NO_PROCESS, process):
                hand_back(study, trial, suspect=False)


def hand_back_orphans(
    study: optuna.Study, paths: StudyPaths, *, alive: Collection[int], suspect: bool
) -> list[int]:
    """Hand back every running trial whose process is not among those that are alive.

    A trial gets its process's number under the same lock under which it is begun; so one without
    a number, or with that of no living process, is proved to be an orphan.

    Args:
        study: The study.
        paths: Files of the study.
        alive: Numbers of the processes that may run trials.
        suspect: Whether the trials themselves may have ended their processes.

    Returns:
        The numbers of the trials.
    """
    with state_lock(paths.trial_lock):
        orphans = [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if trial.user_attrs.get("process") not in alive
        ]
        for trial in orphans:
            hand_back(study, trial, suspect=suspect)
    return [trial.number for trial in orphans]


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _explain(context: ExceptionContext) -> None:
    """Say in one line what is wrong with a database that was fine when it was opened.

    Optuna would say `An exception is raised during the commit`, whatever it is: a damaged page, a
    full disk, a lock that was not given up. What Optuna itself handles is left to it.

    Raises:
        StorageError: With the file and SQLite's own words.
    """
    error = context.original_exception
    handled = isinstance(error, sqlite3.IntegrityError) or "too many SQL" in str(error)
    if isinstance(error, sqlite3.DatabaseError) and not handled:
        raise _unusable(context.engine, error) from error


def _unusable(engine: Engine | None, error: sqlite3.Error) -> StorageError:
    file = Path(str(engine.url.database)) if engine else Path("study.db")
    kind = DiskFullError if is_full(error, file.parent) else StorageError
    return kind(f"{file}: cannot be used: {explain(error)}.")

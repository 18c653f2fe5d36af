"""Optuna's storage on SQLite and on PostgreSQL: safe for many workers, patient, clear in errors.

SQLite is shared by all workers of a machine and by the dashboard. Stock settings lose trials with
`database is locked`, and any unpatched SQLite storage may start a waiting trial twice, since
`SELECT ... FOR UPDATE` does nothing there. Hence write-ahead logging, a long busy timeout, and a
file lock around every change of a trial's state.

PostgreSQL has row locks, which Optuna uses. What takes several transactions (to count trials and
ask for one) has an advisory lock there, on a connection of its own: it ends with its process, and
a minute after a host has lost its power.

Both try again while the database may come back: a trial that has trained for hours is not lost
because a server was started anew.
"""

import functools
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, event
from sqlalchemy.exc import SQLAlchemyError

from search.disk import is_full
from search.drivers import (
    BUSY_TIMEOUT_SECONDS,
    CONNECT_ARGUMENTS,
    Connection,
    connect,
    driver_error_of,
    driver_errors,
    explain,
    may_pass,
    require_driver,
)
from search.errors import DiskFullError, StorageError
from search.frozen_trials import read_trials
from search.location import Server

PATIENCE_SECONDS = 300.0
"""So long an operation is tried again while its database may come back."""
_LONGEST_PAUSE_SECONDS = 5.0
# All that our code and Optuna's own call. What reads and writes one row may be done twice; a trial
# that is made twice, since the answer to the first was lost, has no owner and is handed back.
_OPERATIONS = (
    *("create_new_study", "delete_study", "get_all_studies", "get_study_id_from_name"),
    *("get_study_name_from_id", "get_study_directions", "get_study_user_attrs"),
    *("get_study_system_attrs", "set_study_user_attr", "set_study_system_attr"),
    *("_create_new_trial", "get_trial", "_get_trials", "_get_best_trial_id", "get_trial_param"),
    *("get_trial_id_from_study_id_trial_number", "_set_trial_param", "record_heartbeat"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
    "set_trial_state_values",
)

P = ParamSpec("P")
T = TypeVar("T")


def patient(operation: Callable[P, T], *, place: Callable[P, object]) -> Callable[P, T]:
    """Try an operation again while its database is busy or away.

    Args:
        operation: What uses the database.
        place: Names the database in an error.

    Returns:
        The operation; it raises StorageError when it has waited `PATIENCE_SECONDS`, or when
        waiting cannot help; DiskFullError where a file has no room.
    """

    @functools.wraps(operation)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        ends_at, pause = time.monotonic() + PATIENCE_SECONDS, 0.05
        while True:
            try:
                return operation(*args, **kwargs)
            except storage_errors() as error:
                cause = driver_error_of(error)
                if cause is None or not may_pass(cause) or time.monotonic() > ends_at:
                    raise _unusable(place(*args, **kwargs), cause or error) from error
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    return tried


def _unusable(place: object, error: Exception) -> StorageError:
    is_short = isinstance(place, Path) and is_full(error, place.parent)
    kind = DiskFullError if is_short else StorageError
    return kind(f"{place}: cannot be used: {explain(error)}.")


def storage_errors() -> tuple[type[Exception], ...]:
    """Return what is raised where a database cannot be used."""
    return (StorageInternalError, SQLAlchemyError, *driver_errors())


class PatientStorage(RDBStorage):
    """`RDBStorage` that tries again, and says in one line what is wrong."""

    place: object
    """As messages call the database."""

    def alone(self) -> AbstractContextManager[object]:
        """Return a lock: who holds it is alone in asking for trials and handing them back."""
        raise NotImplementedError

    @contextmanager
    def raw(self) -> Iterator[Connection]:
        """Give a connection of the driver, out of the pool."""
        with self.engine.connect() as pooled:
            driver: Any = pooled.connection.driver_connection
            yield Connection(driver, is_server=self.engine.name == "postgresql")

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
        with self.raw() as connection:
            among, ids = connection.among(included_trial_ids)
            found = connection.execute(
                "SELECT trial_id FROM trials WHERE study_id = ? AND "  # noqa: S608
                f"(trial_id > ? OR trial_id {among}) ORDER BY trial_id",
                (study_id, trial_id_greater_than, ids),
            )
            trials = read_trials(connection, [trial_id for (trial_id,) in found])
        return [trial for trial in trials if states is None or trial.state in states]

    def heartbeats(self, study_id: int) -> dict[int, str]:
        """Return when each running trial last gave a sign of life, by the database's clock."""
        with self.raw() as connection:
            found = connection.execute(
                "SELECT trial_id, heartbeat FROM trial_heartbeats JOIN trials USING (trial_id) "
                "WHERE study_id = ? AND state = 'RUNNING'",
                (study_id,),
            )
            return {trial_id: str(time) for trial_id, time in found}


def _place_of(storage: PatientStorage, *_args: object, **_kwargs: object) -> object:
    return storage.place


for _name in (*_OPERATIONS, "heartbeats"):
    setattr(PatientStorage, _name, patient(getattr(PatientStorage, _name), place=_place_of))


class SQLiteStorage(PatientStorage):
    """On a file; changes of trial state are atomic between processes."""

    def __init__(self, path: Path, lock_path: Path, *, new: bool = False) -> None:
        self.place = path
        self._lock_path = lock_path
        self._lock = FileLock(lock_path, is_singleton=True)
        super().__init__(
            _sqlite_url(path, new=new),
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
        self._lock = FileLock(self._lock_path, is_singleton=True)
        self._tune_connections()

    def _tune_connections(self) -> None:
        event.listen(self.engine, "connect", _set_pragmas)
        self.engine.dispose()  # drops the connections that were made before the listener

    def alone(self) -> AbstractContextManager[object]:
        """Return the file lock; whoever holds it may take it again."""
        return self._lock

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change a trial's state while no other process does."""
        with self._lock:
            return super().set_trial_state_values(trial_id, state, values)


class PostgreSQLStorage(PatientStorage):
    """On a server.

    One connection stays open in each process, and others come and go: a server lets in 100 by its
    default, which 64 workers would otherwise use up.
    """

    def __init__(self, server: Server, study_name: str, *, new: bool = False) -> None:
        require_driver()
        self.place = server
        self._server = server
        self._study_name = study_name
        self._held = threading.local()
        super().__init__(
            server.url_for_sqlalchemy.replace("{", "{{").replace("}", "}}"),
            engine_kwargs={
                "pool_pre_ping": True,
                "pool_size": 1,
                "max_overflow": 20,
                "connect_args": dict(CONNECT_ARGUMENTS),
            },
            skip_table_creation=not new,
        )
        self._close_in_the_end()

    def _close_in_the_end(self) -> None:
        """Close connections with the last user, not when the garbage is collected one day."""
        weakref.finalize(self, self.engine.dispose)

    def __getstate__(self) -> dict[Any, Any]:
        """Leave out what belongs to this process."""
        state = super().__getstate__()
        del state["_held"]
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Connect anew."""
        super().__setstate__(state)
        self._held = threading.local()
        self._close_in_the_end()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the study's advisory lock; whoever holds it may take it again."""
        if getattr(self._held, "is_held", False):
            yield
            return
        with advisory_lock(self._server, self._study_name):
            self._held.is_held = True
            try:
                yield
            finally:
                self._held.is_held = False


_OPEN: "weakref.WeakValueDictionary[tuple[str, str, int], PostgreSQLStorage]" = (
    weakref.WeakValueDictionary()
)


def shared_storage(server: Server, study_name: str) -> PostgreSQLStorage:
    """Return this process's storage of a study: all that open the study share its connections."""
    key = (server.url, study_name, os.getpid())
    storage = _OPEN.get(key)
    if storage is None:
        storage = _OPEN[key] = PostgreSQLStorage(server, study_name)
    return storage


def advisory_lock(server: Server, name: str) -> AbstractContextManager[Any]:
    """Take a lock that all who use a server share, on a connection of its own.

    It is tied to a transaction, which works through a pool of connections too, and is given up
    whatever happens to the connection.

    Args:
        server: The server.
        name: Of what is locked; the empty one stands for Optuna's tables.
    """
    key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)

    def lock() -> Any:
        connection = connect(server)
        try:
            # So a host that has lost its power does not hold the lock for hours.
            for setting, value in (("idle", 30), ("interval", 10), ("count", 3)):
                connection.execute(f"SET tcp_keepalives_{setting} = {value}")
            connection.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_SECONDS}s'")
            connection.execute("SELECT pg_advisory_xact_lock(?)", (key,))
        except BaseException:
            connection.driver.close()
            raise
        return connection.driver

    return closing(patient(lock, place=lambda: server)())


def _sqlite_url(path: Path, *, new: bool) -> str:
    """Return a URL that makes a file only where a new one is wanted.

    Else a worker would put an empty database in the place of one that was deleted meanwhile.
    """
    mode = {"mode": "rwc" if new else "rw", "uri": "true"}
    url = URL.create("sqlite", database=f"file:{quote(str(path))}", query=mode)
    return url.render_as_string()


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()

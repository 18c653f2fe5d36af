"""A study's trials move from one storage to another; its folder stays, with all other files.

Rows are copied as they are, in one transaction: values, distributions and attributes are the same
to the last digit, and nobody sees half of them. Numbers that databases give to rows differ; where
a name holds one (the dashboard's notes on trials), it is written anew.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any, TypeAlias

import optuna
from filelock import FileLock, Timeout
from optuna.storages._rdb.models import BaseModel
from optuna.trial import TrialState
from sqlalchemy import Connection, Table, insert, select

from search.backends import PatientStorage
from search.database import study_ids
from search.errors import ConfigError, SearchError
from search.location import EXPECTED, Location, Server, SQLiteFile, location_of, parse_server
from search.new_storage import check_free, new_storage, rename_study
from search.orphans import OrphanWatch
from search.owners import owner_of
from search.paths import StudyPaths
from search.storage import alone, backend_of, open_study

Row: TypeAlias = dict[str, Any]

_OF_STUDY = ("study_directions", "study_user_attributes", "study_system_attributes")
_OF_TRIAL = (
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "trial_user_attributes",
    "trial_system_attributes",
)
_BATCH = 1000
_TRIAL_IN_KEY = re.compile(r"(?<=^dashboard:)\d+(?=:)")


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What was copied, and between which places."""

    n_trials: int
    source: Location
    target: Location
    kept: str
    """Where the copied ones still lie."""


def copy_study(paths: StudyPaths, to: str) -> Copied:
    """Copy the trials of a study to another storage, and let the study go on there.

    Args:
        paths: Files of the study.
        to: URL of a server, or the study's own folder for SQLite.

    Returns:
        What was copied; where it lay before, it still lies, under another name.

    Raises:
        ConfigError: The target cannot be used, or is where the study is.
        SearchError: Somebody works on the study.
        StorageError: One of the storages cannot be used, or has a study of that name.
    """
    study = open_study(paths)
    source, target = location_of(paths), _target(paths, to)
    if _is_same(source, target):
        raise ConfigError(f"--to: study {paths.name!r} is stored in {source} already.")
    check_free(paths, target)
    with _nobody_runs(paths), alone(study):
        OrphanWatch(study).hand_back(suspect=False)
        _refuse_running(study)
        with new_storage(paths, target) as (storage, name):
            n_trials = _copy_rows(backend_of(study), study._study_id, storage, name)
        kept = _set_aside(paths, source, backend_of(study))
    return Copied(n_trials=n_trials, source=source, target=target, kept=kept)


def _target(paths: StudyPaths, to: str) -> Location:
    if "://" in to:
        try:
            return parse_server(to)
        except ConfigError as error:
            raise ConfigError(f"--to: {error}") from None
    if Path(to).resolve() != paths.folder.resolve():
        raise ConfigError(
            f"--to: expected {EXPECTED}, or the study's own folder, {str(paths.folder)!r}, for "
            f"SQLite; got {to!r}."
        )
    return SQLiteFile(paths.database)


def _is_same(one: Location, other: Location) -> bool:
    if isinstance(one, Server) and isinstance(other, Server):
        return one.is_same_place(other)
    return one == other


@contextmanager
def _nobody_runs(paths: StudyPaths) -> Iterator[None]:
    """Hold the lock of `run` on the study."""
    lock = FileLock(paths.supervisor_lock)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SearchError(
            f"a run is working on study {paths.name!r}; stop it first, it goes on afterwards."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _refuse_running(study: optuna.Study) -> None:
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if running:
        owner = owner_of(running[0].user_attrs)
        where = f", trial {running[0].number} on {owner.host}" if owner else ""
        raise SearchError(
            f"{len(running)} trials of study {study.study_name!r} are running{where}; stop the "
            "workers first. Those of a host that has gone are free again after two minutes of "
            "`python -m search resume`."
        )


def _copy_rows(
    source: PatientStorage, study_id: int, target: PatientStorage, study_name: str
) -> int:
    """Copy all rows of a study in one transaction; return the number of its trials."""
    with source.engine.connect() as reading, target.engine.begin() as writing:
        ((new_id,),) = _insert(writing, "studies", [{"study_name": study_name}])
        trials = _read(reading, "trials", "study_id", [study_id])
        new_trials = _insert(writing, "trials", [{**row, "study_id": new_id} for row in trials])
        ids = {row["trial_id"]: new for row, (new,) in zip(trials, new_trials, strict=True)}
        for table in _OF_STUDY:
            rows = _read(reading, table, "study_id", [study_id])
            _insert(writing, table, [_renamed({**row, "study_id": new_id}, ids) for row in rows])
        for table, batch in product(_OF_TRIAL, _batches(list(ids))):
            rows = _read(reading, table, "trial_id", batch)
            _insert(writing, table, [{**row, "trial_id": ids[row["trial_id"]]} for row in rows])
    return len(trials)


def _read(connection: Connection, name: str, key: str, values: Sequence[int]) -> list[Row]:
    """Return the rows whose key is among the values, in the order in which they were written."""
    table = _table(name)
    wanted = select(table).where(table.c[key].in_(values)).order_by(*table.primary_key)
    return [dict(row) for row in connection.execute(wanted).mappings()]


def _insert(connection: Connection, name: str, rows: Sequence[Row]) -> Sequence[Any]:
    """Write rows, and return the numbers that the database gives them, in the same order."""
    table = _table(name)
    (key,) = table.primary_key
    if not rows:
        return []
    statement = insert(table).returning(key, sort_by_parameter_order=True)
    given = [{name: value for name, value in row.items() if name != key.name} for row in rows]
    return connection.execute(statement, given).all()


def _table(name: str) -> Table:
    table: Table = BaseModel.metadata.tables[name]  # Optuna's own; it has no public name
    return table


def _batches(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH)]


def _renamed(row: Row, ids: Mapping[int, int]) -> Row:
    """Put the new number of a trial into the key of an attribute that names one."""
    if "key" not in row:
        return row

    def new(match: "re.Match[str]") -> str:
        return str(ids.get(int(match[0]), match[0]))

    return {**row, "key": _TRIAL_IN_KEY.sub(new, row["key"])}


def _set_aside(paths: StudyPaths, source: Location, storage: PatientStorage) -> str:
    """Give what was copied another name, so that nobody goes on with it by mistake."""
    storage.remove_session()
    if isinstance(source, Server):
        with storage.raw() as connection:
            names = study_ids(connection)
        wanted = (f"{paths.name} (copied {number})" for number in count(1))
        kept_name = next(name for name in wanted if name not in names)
        rename_study(storage, paths.name, kept_name)
        return f"study {kept_name!r} there"
    storage.engine.dispose()  # the last connection to close empties the log
    candidates = (source.path.with_name(f"study-copied-{number}.db") for number in count(1))
    kept = next(path for path in candidates if not path.exists())
    for suffix in ("", "-wal", "-shm"):  # the last two where a dashboard looks at it
        file = source.path.with_name(source.path.name + suffix)
        if file.exists():
            file.rename(kept.with_name(kept.name + suffix))
    return str(kept)

"""A new place for a study, which nobody sees before all is in it."""

from collections.abc import Container, Iterator
from contextlib import closing, contextmanager
from typing import TypeAlias

from sqlalchemy import text

from search.backends import (
    PatientStorage,
    PostgreSQLStorage,
    SQLiteStorage,
    advisory_lock,
    storage_errors,
)
from search.database import study_ids
from search.drivers import Connection, connect, driver_errors, explain
from search.errors import SearchError, StorageError
from search.location import Location, Server, SQLiteFile, note_location
from search.paths import StudyPaths

NewStorage: TypeAlias = tuple[PatientStorage, str]
"""A storage, and the name that the study has until it is complete."""


@contextmanager
def new_storage(paths: StudyPaths, location: Location) -> Iterator[NewStorage]:
    """Give a storage in which to make a study; it takes its place when the block ends well.

    Args:
        paths: Files of the study; its folder must exist.
        location: Where it shall be stored; noted in the folder at the end.

    Raises:
        StorageError: It cannot be made there, or a study of that name is there.
    """
    make = (
        _on_server(paths, location) if isinstance(location, Server) else _in_file(paths, location)
    )
    try:
        with make as made:
            yield made
    except SearchError:
        raise
    except _problems() as error:
        raise StorageError(f"{location}: cannot be made: {explain(error)}.") from error
    note_location(paths, location)


def check_free(paths: StudyPaths, location: Location) -> None:
    """Refuse a server that is not there, or has a study of that name: before any work is done.

    Later on, a server that is away is waited for.

    Raises:
        StorageError: With what is wrong.
    """
    if not isinstance(location, Server):
        if location.path.exists():
            raise StorageError(f"{location}: is there already, and would be lost.")
        return
    try:
        with closing(connect(location).driver) as driver:
            found = study_ids(Connection(driver, is_server=True))
    except driver_errors() as error:
        raise StorageError(f"{location}: cannot be used: {explain(error)}.") from error
    _refuse_taken(paths, location, found)


def _refuse_taken(paths: StudyPaths, server: Server, found: Container[str]) -> None:
    if paths.name in found:
        raise StorageError(
            f"{server}: has a study {paths.name!r} already, not of this folder; "
            f"`python -m search worker {paths.name} --storage URL` joins it, --name starts "
            "another one."
        )


@contextmanager
def _in_file(paths: StudyPaths, location: SQLiteFile) -> Iterator[NewStorage]:
    """Make a file under another name, which gets its own when all is in it."""
    unfinished = location.path.with_suffix(".db.new")
    for suffix in ("", "-wal", "-shm"):
        unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
    with _closed(SQLiteStorage(unfinished, paths.trial_lock, new=True)) as storage:
        yield storage, paths.name
    unfinished.replace(location.path)


@contextmanager
def _on_server(paths: StudyPaths, server: Server) -> Iterator[NewStorage]:
    """Make a study under another name, which gets its own when all is in it.

    What lies there under that other name is of a process that was killed: one that lives holds
    the lock.
    """
    with advisory_lock(server, ""):
        storage = PostgreSQLStorage(server, paths.name, new=True)
    unfinished = f"{paths.name} (unfinished)"
    with _closed(storage), storage.alone():
        with storage.raw() as connection:
            found = study_ids(connection)
        _refuse_taken(paths, server, found)
        if unfinished in found:
            storage.delete_study(found[unfinished])
        yield storage, unfinished
        rename_study(storage, unfinished, paths.name)


def rename_study(storage: PatientStorage, old: str, new: str) -> None:
    """Give a study another name; Optuna itself has no way to do this."""
    with storage.engine.begin() as connection:
        rename = text("UPDATE studies SET study_name = :new WHERE study_name = :old")
        connection.execute(rename, {"new": new, "old": old})


def _problems() -> tuple[type[Exception], ...]:
    return (OSError, *storage_errors())


@contextmanager
def _closed(storage: PatientStorage) -> Iterator[PatientStorage]:
    """Close all connections at the end; the last one to close empties SQLite's log."""
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()

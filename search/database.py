"""A study's database as its driver shows it, for a quick look.

To open it through Optuna and SQLAlchemy takes half a second, and to read 5,000 trials another;
how far a study is can be asked of the database itself in a few milliseconds.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.drivers import Connection, connect, driver_errors, explain, is_no_database
from search.errors import NothingToDoError, StorageError
from search.frozen_trials import read_trials
from search.location import Location, Server, has_study, location_of
from search.paths import StudyPaths


@contextmanager
def look_into(paths: StudyPaths) -> Iterator[tuple[Connection, int]]:
    """Give a connection to the database of a study, and Optuna's id of the study.

    Raises:
        NothingToDoError: There is no such study.
        StorageError: There is no database of this study, or it is damaged or out of reach.
    """
    if not has_study(paths):
        raise NothingToDoError(
            f"there is no study {paths.name!r} in {paths.folder.parent}; "
            "`python -m search list` shows those there are."
        )
    with _looking_into(location_of(paths), paths) as found:
        yield found


@contextmanager
def _looking_into(location: Location, paths: StudyPaths) -> Iterator[tuple[Connection, int]]:
    try:
        connection = connect(location)
        with closing(connection.driver):
            study_id = _find_study(connection, location, paths)
            yield connection, study_id
    except driver_errors() as error:
        problem = "cannot be used"
        if is_no_database(error):
            problem = f"not the database of study {paths.name!r}"
        raise StorageError(f"{location}: {problem}: {explain(error)}.") from error


def study_ids(connection: Connection) -> dict[str, int]:
    """Return Optuna's id of each study of a database, by name."""
    tables = "SELECT name FROM sqlite_master WHERE name = 'studies'"
    if connection.is_server:
        tables = "SELECT 1 WHERE to_regclass('studies') IS NOT NULL"
    if not connection.execute(tables).fetchall():
        return {}
    return dict(connection.execute("SELECT study_name, study_id FROM studies").fetchall())


def read_attributes(paths: StudyPaths) -> dict[str, Any]:
    """Return the user attributes of a study.

    Raises:
        NothingToDoError: There is no such study.
        StorageError: Its database cannot be read.
    """
    with look_into(paths) as (connection, study_id):
        return _attributes(connection, study_id)


def read_attributes_at(server: Server, name: str) -> dict[str, Any]:
    """Return the user attributes of a study on a server, of which no folder is here yet.

    Raises:
        NothingToDoError: The server has no such study.
        StorageError: It cannot be reached, or does not let us in.
    """
    try:
        connection = connect(server)
        with closing(connection.driver):
            found = study_ids(connection)
            if name in found:
                return _attributes(connection, found[name])
    except driver_errors() as error:
        raise StorageError(f"{server}: cannot be used: {explain(error)}.") from error
    raise NothingToDoError(
        f"{server}: has no study {name!r}; it has {', '.join(sorted(found)) or 'none'}. "
        f"`python -m search run --name {name} --storage URL` makes it."
    )


def _attributes(connection: Connection, study_id: int) -> dict[str, Any]:
    query = "SELECT key, value_json FROM study_user_attributes WHERE study_id = ?"
    return {key: json.loads(text) for key, text in connection.execute(query, (study_id,))}


def count_states(paths: StudyPaths) -> Counter[TrialState]:
    """Count the trials of a study by their states.

    Raises:
        NothingToDoError: There is no such study.
        StorageError: Its database cannot be read.
    """
    with look_into(paths) as (connection, study_id):
        query = "SELECT state, COUNT(*) FROM trials WHERE study_id = ? GROUP BY state"
        found = connection.execute(query, (study_id,))
        return Counter({TrialState[state]: count for state, count in found})


def read_all(paths: StudyPaths) -> list[FrozenTrial]:
    """Return all trials of a study, by number.

    Raises:
        NothingToDoError: There is no such study.
        StorageError: Its database cannot be read.
    """
    with look_into(paths) as (connection, study_id):
        query = "SELECT trial_id FROM trials WHERE study_id = ? ORDER BY trial_id"
        found = connection.execute(query, (study_id,))
        return read_trials(connection, [trial_id for (trial_id,) in found])


def read_best(paths: StudyPaths, *, rises: bool) -> FrozenTrial | None:
    """Return the best complete trial of a study, the earlier one where two are equal.

    Args:
        paths: Files of the study.
        rises: Whether more is better.

    Raises:
        NothingToDoError: There is no such study.
        StorageError: Its database cannot be read.
    """
    way = "DESC" if rises else "ASC"
    with look_into(paths) as (connection, study_id):
        row = connection.execute(
            "SELECT trial_id FROM trials JOIN trial_values USING (trial_id) "  # noqa: S608
            "WHERE study_id = ? AND state = 'COMPLETE' AND objective = 0 "
            "ORDER BY CASE value_type WHEN 'INF_NEG' THEN -1 WHEN 'INF_POS' THEN 1 ELSE 0 END "
            f"{way}, value {way}, number LIMIT 1",
            (study_id,),
        ).fetchone()
        if row is None:
            return None
        return read_trials(connection, row)[0]


def _find_study(connection: Connection, location: Location, paths: StudyPaths) -> int:
    found = study_ids(connection)
    if paths.name in found:
        return found[paths.name]
    if isinstance(location, Server):
        raise StorageError(
            f"{location}: holds no study {paths.name!r} (any more), though {paths.storage_note} "
            "says so; move its folder away, and the same `run` begins anew."
        )
    raise StorageError(f"{location}: {_other_name(paths, list(found))}")


def _other_name(paths: StudyPaths, names: Sequence[str]) -> str:
    """Say which studies a database holds instead of the one that its folder is named after."""
    if not names:
        return "holds no study; move its folder away, and the same `run` begins anew."
    folder = paths.folder.with_name(names[0])
    return f"holds study {names[0]!r}, not {paths.name!r}; rename its folder to {str(folder)!r}."

"""A study's SQLite file as SQLite shows it, for a quick look.

To open it through Optuna and SQLAlchemy takes half a second, and to read 5,000 trials another;
how far a study is can be asked of the file in a few milliseconds.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

from optuna.trial import FrozenTrial, TrialState

from search.errors import NothingToDoError, StorageError
from search.frozen_trials import read_trials
from search.paths import StudyPaths

BUSY_TIMEOUT_SECONDS = 120
_HINTS: Mapping[str, str] = {
    "malformed": "put back a copy, or save what is left of it with `sqlite3 FILE .recover`",
    "disk is full": "free some space, then `python -m search resume` goes on",
    "readonly": "expected a file and a folder that can be written",
    "is locked": f"another process has held it for more than {BUSY_TIMEOUT_SECONDS} s",
}
"""From SQLite's words to what can be done."""


@contextmanager
def look_into(paths: StudyPaths) -> Iterator[tuple[sqlite3.Connection, int]]:
    """Give a connection to the database of a study, and Optuna's id of the study.

    Raises:
        NothingToDoError: There is no such study.
        StorageError: The file is there but is no database of this study, or is damaged.
    """
    if not paths.database.is_file():
        raise NothingToDoError(
            f"there is no study {paths.name!r} in {paths.folder.parent}; "
            "`python -m search list` shows those there are."
        )
    problem = f"not the database of study {paths.name!r}"
    try:
        # `rw`, since without it SQLite would make a file that has gone meanwhile.
        name = f"file:{quote(str(paths.database))}?mode=rw"
        with closing(sqlite3.connect(name, uri=True, timeout=BUSY_TIMEOUT_SECONDS)) as connection:
            study_id = _find_study(connection, paths)
            problem = "cannot be used"
            yield connection, study_id
    except sqlite3.Error as error:
        raise StorageError(f"{paths.database}: {problem}: {explain(error)}.") from error


def read_attributes(paths: StudyPaths) -> dict[str, Any]:
    """Return the user attributes of a study.

    Raises:
        NothingToDoError: There is no such study.
        StorageError: Its database cannot be read.
    """
    with look_into(paths) as (connection, study_id):
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


def explain(error: BaseException) -> str:
    """Return the first line of what a library said of a database, and what can be done."""
    original = getattr(error, "orig", None) or error  # SQLAlchemy wraps the error of the driver
    line = (str(original).strip() or repr(original)).splitlines()[0].rstrip(".")
    return "; ".join([line, *(hint for words, hint in _HINTS.items() if words in line)])


def _find_study(connection: sqlite3.Connection, paths: StudyPaths) -> int:
    tables = "SELECT name FROM sqlite_master WHERE name = 'studies'"
    studies = "SELECT study_name, study_id FROM studies"
    found = dict(connection.execute(studies)) if connection.execute(tables).fetchall() else {}
    if paths.name not in found:
        raise StorageError(f"{paths.database}: {_other_name(paths, list(found))}")
    study_id: int = found[paths.name]
    return study_id


def _other_name(paths: StudyPaths, names: Sequence[str]) -> str:
    """Say which studies a database holds instead of the one that its folder is named after."""
    if not names:
        return "holds no study; move its folder away, and the same `run` begins anew."
    folder = paths.folder.with_name(names[0])
    return f"holds study {names[0]!r}, not {paths.name!r}; rename its folder to {str(folder)!r}."

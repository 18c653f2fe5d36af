import os
import sqlite3
from pathlib import Path

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from search.database import count_states, look_into, read_all, read_attributes, read_best
from search.drivers import explain
from search.errors import NothingToDoError, StorageError
from search.paths import StudyPaths
from search.storage import create_study, open_study


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    paths = StudyPaths(tmp_path / "one")
    paths.folder.mkdir()
    create_study(
        paths,
        StudyDirection.MINIMIZE,
        metric="log_loss",
        attributes={"answer": 42, "names": ["a", "b"]},
        first_trials=[{"x": 0.25}],
    )
    return paths


def add(paths: StudyPaths, *values: float, state: TrialState = TrialState.COMPLETE) -> None:
    study = open_study(paths)
    for value in values:
        study.add_trial(create_trial(state=state, value=value))


def test_attributes_are_values(paths: StudyPaths) -> None:
    assert read_attributes(paths) == {"answer": 42, "names": ["a", "b"]}


def test_states_are_counted(paths: StudyPaths) -> None:
    add(paths, 0.5, 0.25)
    add(paths, 0.1, state=TrialState.PRUNED)

    counts = count_states(paths)

    assert counts == {TrialState.WAITING: 1, TrialState.COMPLETE: 2, TrialState.PRUNED: 1}
    assert counts[TrialState.RUNNING] == 0


@pytest.mark.parametrize(
    ("values", "lowest", "highest"),
    [
        ((0.5, 0.25, 0.25, 0.75, 0.75), 2, 4),
        ((float("inf"), 0.5, float("-inf")), 3, 1),
        ((float("inf"), 0.5), 2, 1),
    ],
)
def test_the_best_trial_is_the_earlier_of_two_equals(
    paths: StudyPaths, values: tuple[float, ...], lowest: int, highest: int
) -> None:
    add(paths, *values)
    add(paths, -1.0, 9.0, state=TrialState.PRUNED)

    fallen, risen = (read_best(paths, rises=rises) for rises in (False, True))

    assert fallen is not None
    assert risen is not None
    assert (fallen.number, risen.number) == (lowest, highest)
    assert fallen.value == values[lowest - 1]


def test_a_study_without_complete_trial_has_no_best(paths: StudyPaths) -> None:
    add(paths, 0.5, state=TrialState.PRUNED)

    assert read_best(paths, rises=False) is None


def test_a_look_makes_no_file(tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path / "absent")

    with pytest.raises(NothingToDoError, match="there is no study 'absent' in"), look_into(paths):
        pass

    assert not list(tmp_path.iterdir())


def test_what_sqlite_says_is_told_with_what_can_be_done(paths: StudyPaths) -> None:
    with (
        pytest.raises(StorageError, match=r"one/study\.db: cannot be used: no such table: wheels"),
        look_into(paths) as (connection, _),
    ):
        connection.execute("SELECT * FROM wheels")

    full = explain(sqlite3.OperationalError("database or disk is full"))
    assert full.startswith("database or disk is full; free some space")
    locked = explain(sqlite3.OperationalError("database is locked"))
    assert locked == "database is locked; another process has held it for more than 120 s"


def test_all_trials_are_those_that_optuna_reads(paths: StudyPaths) -> None:
    add(paths, 0.5, 0.25)

    assert read_all(paths) == open_study(paths).get_trials()


def test_where_nothing_can_be_written_a_look_writes_nothing(
    paths: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    before = set(paths.folder.iterdir())

    with look_into(paths) as (connection, _):
        assert connection.execute("SELECT COUNT(*) FROM trials").fetchone() == (1,)
        assert set(paths.folder.iterdir()) == before


def test_trials_in_a_log_are_not_missed_where_nothing_can_be_written(
    paths: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    study = open_study(paths)
    study.add_trial(create_trial(value=0.5))  # in the log as long as the study is open

    assert count_states(paths)[TrialState.COMPLETE] == 1


def test_a_database_that_cannot_be_opened_is_not_called_another_file(paths: StudyPaths) -> None:
    wal = paths.database.with_name("study.db-wal")
    wal.unlink(missing_ok=True)
    wal.mkdir()

    for read in (count_states, open_study):
        with pytest.raises(StorageError, match=r"study\.db: cannot be used: unable to open d"):
            read(paths)

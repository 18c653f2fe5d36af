import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState
from servers import Cluster
from sqlalchemy import text

from search.backends import PostgreSQLStorage, SQLiteStorage
from search.database import read_attributes
from search.errors import NothingToDoError, StorageError
from search.location import Location, SQLiteFile, parse_server
from search.orphans import OrphanWatch
from search.owners import this_process
from search.paths import StudyPaths
from search.storage import (
    MAX_ATTEMPTS,
    alone,
    ask,
    create_study,
    give_back,
    hand_back,
    n_counted,
    open_study,
    tell,
)
from search.supervisor import start_context


class TestContractOnSQLite(StorageTestCase):
    """Optuna's own contract tests."""

    @pytest.fixture
    def storage(self) -> Iterator[BaseStorage]:
        with TemporaryDirectory() as folder:
            storage = SQLiteStorage(
                Path(folder) / "study.db", Path(folder) / "study.db.lock", new=True
            )
            yield storage
            storage.remove_session()
            storage.engine.dispose()


@pytest.fixture(scope="session")
def contract_database(cluster: Cluster) -> str:
    return cluster.new_database()


class TestContractOnPostgreSQL(StorageTestCase):
    """Optuna's own contract tests."""

    @pytest.fixture
    def storage(self, contract_database: str) -> Iterator[BaseStorage]:
        storage = PostgreSQLStorage(parse_server(contract_database), "any", new=True)
        yield storage
        storage.remove_session()
        with storage.engine.begin() as connection:
            connection.execute(text("TRUNCATE studies RESTART IDENTITY CASCADE"))
        storage.engine.dispose()


def make(place: tuple[StudyPaths, Location], first_trials: Sequence[Mapping[str, float]]) -> None:
    paths, location = place
    create_study(
        paths,
        StudyDirection.MINIMIZE,
        metric="log_loss",
        attributes={"answer": 42},
        first_trials=first_trials,
        location=location,
    )


@pytest.fixture
def paths(place: tuple[StudyPaths, Location]) -> StudyPaths:
    """Return a study with one trial in its queue, on either storage."""
    make(place, [{"x": 0.25}])
    return place[0]


@pytest.fixture(scope="session")
def dead_process() -> int:
    """Return the number of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def started_at(pid: int) -> int:
    """Return when a process started, in the kernel's ticks."""
    return int(
        Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    )


def run_elsewhere(trial: optuna.Trial | None, **changes: object) -> None:
    """Let a trial look as if another process had begun it."""
    assert trial is not None
    trial.set_user_attr("owner", {**this_process().to_json(), **changes})


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path / "my {runs} 100%20? #1" / "one")
    paths.folder.mkdir(parents=True)

    create_study(
        paths, StudyDirection.MINIMIZE, metric="x", attributes={"answer": 42}, first_trials=[]
    )

    assert open_study(paths).user_attrs["answer"] == 42
    assert [path.name for path in tmp_path.iterdir()] == [paths.folder.parent.name]
    assert read_attributes(paths)["answer"] == 42


def test_a_new_study_on_a_file_is_in_write_ahead_mode(tmp_path: Path) -> None:
    make((StudyPaths(tmp_path), SQLiteFile(tmp_path / "study.db")), [])

    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_new_study_has_its_attributes(paths: StudyPaths) -> None:
    assert open_study(paths).user_attrs["answer"] == 42
    assert read_attributes(paths) == {"answer": 42}


def test_the_first_trial_takes_the_parameters_it_was_given(paths: StudyPaths) -> None:
    trial = ask(open_study(paths), 5)

    assert trial is not None
    assert trial.suggest_float("x", 0, 1) == 0.25


def test_no_trial_is_begun_beyond_the_number_asked(paths: StudyPaths) -> None:
    study = open_study(paths)

    begun = [ask(study, 3) for _ in range(5)]

    assert [trial.number for trial in begun if trial] == [0, 1, 2]


def test_a_failed_trial_is_replaced(paths: StudyPaths) -> None:
    study = open_study(paths)
    first = ask(study, 1)
    assert first is not None
    assert ask(study, 1) is None

    assert tell(study, first, TrialState.FAIL)

    second = ask(study, 1)
    assert second is not None
    assert second.number == 1


def test_an_interrupted_trial_goes_on_under_its_number_with_its_parameters(
    paths: StudyPaths,
) -> None:
    study = open_study(paths)
    first, trial = ask(study, 2), ask(study, 2)
    assert first is not None
    assert trial is not None
    x = trial.suggest_float("x", 0, 1)
    trial.report(0.5, 1)

    assert give_back(study, first)
    assert give_back(study, trial)
    again = [ask(study, 2) for _ in range(3)]

    numbers = [other.number for other in again if other]
    assert numbers == [0, 1]
    assert again[1] is not None
    assert again[1].suggest_float("x", 0, 1) == x
    assert study.trials[1].intermediate_values == {1: 0.5}
    assert n_counted(study.get_trials()) == 2


def test_only_trials_of_dead_processes_are_handed_back(
    paths: StudyPaths, dead_process: int
) -> None:
    study = open_study(paths)
    run_elsewhere(ask(study, 4), pid=dead_process)
    ask(study, 4)
    run_elsewhere(ask(study, 4), started=1)  # this number was given to us after that process
    run_elsewhere(ask(study, 4), pid=os.getppid(), started=started_at(os.getppid()))

    orphans = OrphanWatch(study).hand_back(suspect=True)

    assert orphans == [0, 2]
    assert [trial.state.name for trial in study.trials] == [
        "WAITING",
        "RUNNING",
        "WAITING",
        "RUNNING",
    ]


def test_a_trial_that_ends_its_process_again_and_again_fails(
    paths: StudyPaths, dead_process: int
) -> None:
    study = open_study(paths)
    for _ in range(MAX_ATTEMPTS):
        run_elsewhere(ask(study, 1), pid=dead_process)
        OrphanWatch(study).hand_back(suspect=True)

    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[0].user_attrs["failure"].startswith("its process ended 3 times")


def test_a_trial_that_gets_on_between_two_deaths_is_no_suspect(
    paths: StudyPaths, dead_process: int
) -> None:
    study = open_study(paths)
    for step in range(2 * MAX_ATTEMPTS):
        trial = ask(study, 1)
        assert trial is not None
        trial.report(1.0, step)
        run_elsewhere(trial, pid=dead_process)
        OrphanWatch(study).hand_back(suspect=True)

    assert study.trials[0].state == TrialState.WAITING


def test_a_trial_that_somebody_finished_is_left_alone(paths: StudyPaths) -> None:
    study = open_study(paths)
    trial = ask(study, 1)
    assert trial is not None
    running = study.trials[0]
    study.tell(trial, 0.5)

    assert not hand_back(study, running, suspect=False)
    assert not tell(study, trial, TrialState.FAIL)
    assert study.trials[0].state == TrialState.COMPLETE
    assert study.trials[0].value == 0.5


def test_what_another_process_runs_meanwhile_is_neither_told_nor_handed_back(
    paths: StudyPaths,
) -> None:
    study = open_study(paths)
    trial = ask(study, 1)
    assert trial is not None
    run_elsewhere(trial, boot="of another host")

    assert not tell(study, trial, TrialState.COMPLETE, 0.5)
    assert not give_back(study, trial)
    assert study.trials[0].state == TrialState.RUNNING


def _ask_all(folder: Path, numbers: "multiprocessing.SimpleQueue[tuple[int, int]]") -> None:
    study = open_study(StudyPaths(folder))
    while trial := ask(study, 24):
        numbers.put((os.getpid(), trial.number))
        trial.suggest_float("x", 0, 1)
        for step in range(10):
            trial.report(1.0, step)
        assert tell(study, trial, TrialState.COMPLETE, 0.0)


@pytest.mark.slow
def test_eight_processes_begin_each_trial_once(place: tuple[StudyPaths, Location]) -> None:
    make(place, [{"x": index / 16} for index in range(16)])
    context: Any = start_context()
    numbers = context.SimpleQueue()
    processes = [
        context.Process(target=_ask_all, args=(place[0].folder, numbers)) for _ in range(8)
    ]

    for process in processes:
        process.start()
    begun = [numbers.get() for _ in range(24)]
    for process in processes:
        process.join()

    assert sorted(number for _, number in begun) == list(range(24))
    assert numbers.empty()
    assert [process.exitcode for process in processes] == [0] * 8
    trials = open_study(place[0]).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 24
    assert [trial.params["x"] for trial in trials[:16]] == [index / 16 for index in range(16)]
    assert {len(trial.intermediate_values) for trial in trials} == {10}


def _hold(folder: Path, held: "multiprocessing.SimpleQueue[int]") -> None:
    with alone(open_study(StudyPaths(folder))):
        held.put(os.getpid())
        time.sleep(60)


@pytest.mark.slow
def test_a_killed_process_holds_no_lock(paths: StudyPaths) -> None:
    context: Any = start_context()
    held = context.SimpleQueue()
    process = context.Process(target=_hold, args=(paths.folder, held))
    process.start()
    held.get()

    process.kill()
    process.join()

    assert ask(open_study(paths), 1) is not None


def test_the_lock_keeps_others_out_and_its_holder_may_take_it_again(paths: StudyPaths) -> None:
    study = open_study(paths)
    entered: list[str] = []

    def enter() -> None:
        with alone(study):
            entered.append("other")

    thread = Thread(target=enter)
    with alone(study), alone(study):
        thread.start()
        time.sleep(0.3)
        entered.append("holder")
    thread.join()

    assert entered == ["holder", "other"]


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError, match="there is no study 'absent' in"):
        open_study(StudyPaths(tmp_path / "absent"))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path / "broken")
    paths.folder.mkdir()
    paths.database.write_bytes(b"not a database, but long enough to be read as one" * 100)

    with pytest.raises(StorageError, match="not the database of study 'broken'"):
        open_study(paths)


def test_a_database_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be made"):
        create_study(
            StudyPaths(tmp_path / "no" / "folder"),
            StudyDirection.MINIMIZE,
            metric="log_loss",
            attributes={},
            first_trials=[],
        )

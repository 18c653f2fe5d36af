import multiprocessing
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from search.database import read_attributes
from search.errors import NothingToDoError, StorageError
from search.paths import StudyPaths
from search.storage import (
    MAX_ATTEMPTS,
    SQLiteStorage,
    ask,
    create_study,
    hand_back,
    hand_back_orphans,
    n_counted,
    open_study,
)


class TestContract(StorageTestCase):
    """Optuna's own contract tests."""

    @pytest.fixture
    def storage(self) -> Iterator[BaseStorage]:
        with TemporaryDirectory() as folder:
            storage = SQLiteStorage(Path(folder) / "study.db", Path(folder) / "study.db.lock")
            yield storage
            storage.remove_session()
            storage.engine.dispose()


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    paths = StudyPaths(tmp_path / "one")
    paths.folder.mkdir()
    create_study(
        paths,
        StudyDirection.MINIMIZE,
        metric="log_loss",
        attributes={"answer": 42},
        first_trials=[{"x": 0.25}],
    )
    return paths


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path / "my {runs} 100%20? #1" / "one")
    paths.folder.mkdir(parents=True)

    create_study(
        paths, StudyDirection.MINIMIZE, metric="x", attributes={"answer": 42}, first_trials=[]
    )

    assert open_study(paths).user_attrs["answer"] == 42
    assert [path.name for path in tmp_path.iterdir()] == [paths.folder.parent.name]
    assert read_attributes(paths)["answer"] == 42


def test_a_new_study_is_in_write_ahead_mode_and_has_its_attributes(paths: StudyPaths) -> None:
    study = open_study(paths)

    assert study.user_attrs["answer"] == 42
    with sqlite3.connect(paths.database) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_first_trial_takes_the_parameters_it_was_given(paths: StudyPaths) -> None:
    trial = ask(open_study(paths), paths, 5, process=1)

    assert trial is not None
    assert trial.suggest_float("x", 0, 1) == 0.25


def test_no_trial_is_begun_beyond_the_number_asked(paths: StudyPaths) -> None:
    study = open_study(paths)

    begun = [ask(study, paths, 3, process=1) for _ in range(5)]

    assert [trial.number for trial in begun if trial] == [0, 1, 2]


def test_a_failed_trial_is_replaced(paths: StudyPaths) -> None:
    study = open_study(paths)
    first = ask(study, paths, 1, process=1)
    assert first is not None
    assert ask(study, paths, 1, process=1) is None

    study.tell(first, state=TrialState.FAIL)

    second = ask(study, paths, 1, process=1)
    assert second is not None
    assert second.number == 1


def test_an_interrupted_trial_goes_on_under_its_number_with_its_parameters(
    paths: StudyPaths,
) -> None:
    study = open_study(paths)
    ask(study, paths, 2, process=1)
    trial = ask(study, paths, 2, process=1)
    assert trial is not None
    x = trial.suggest_float("x", 0, 1)
    trial.report(0.5, 1)

    hand_back_orphans(study, paths, alive=(), suspect=False)
    again = [ask(study, paths, 2, process=2) for _ in range(3)]

    numbers = [other.number for other in again if other]
    assert numbers == [0, 1]
    assert again[1] is not None
    assert again[1].suggest_float("x", 0, 1) == x
    assert study.trials[1].intermediate_values == {1: 0.5}
    assert n_counted(study.get_trials()) == 2


def test_only_trials_of_dead_processes_are_handed_back(paths: StudyPaths) -> None:
    study = open_study(paths)
    ask(study, paths, 3, process=11)
    ask(study, paths, 3, process=22)

    orphans = hand_back_orphans(study, paths, alive=(22,), suspect=True)

    assert orphans == [0]
    assert [trial.state for trial in study.trials] == [TrialState.WAITING, TrialState.RUNNING]


def test_a_trial_that_ends_its_process_again_and_again_fails(paths: StudyPaths) -> None:
    study = open_study(paths)
    for _ in range(MAX_ATTEMPTS):
        ask(study, paths, 1, process=1)
        hand_back_orphans(study, paths, alive=(), suspect=True)

    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[0].user_attrs["failure"].startswith("its process ended 3 times")


def test_a_trial_that_gets_on_between_two_deaths_is_no_suspect(paths: StudyPaths) -> None:
    study = open_study(paths)
    for step in range(2 * MAX_ATTEMPTS):
        trial = ask(study, paths, 1, process=1)
        assert trial is not None
        trial.report(1.0, step)
        hand_back_orphans(study, paths, alive=(), suspect=True)

    assert study.trials[0].state == TrialState.WAITING


def test_a_trial_that_somebody_finished_is_left_alone(paths: StudyPaths) -> None:
    study = open_study(paths)
    trial = ask(study, paths, 1, process=1)
    assert trial is not None
    running = study.trials[0]
    study.tell(trial, 0.5)

    assert not hand_back(study, running, suspect=False)
    assert study.trials[0].state == TrialState.COMPLETE


def _ask_all(folder: Path, numbers: "multiprocessing.SimpleQueue[int]") -> None:
    paths = StudyPaths(folder)
    study = open_study(paths)
    while trial := ask(study, paths, 24, process=1):
        study.tell(trial, 0.0)
        numbers.put(trial.number)


def test_four_processes_begin_each_trial_once(paths: StudyPaths) -> None:
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    processes = [context.Process(target=_ask_all, args=(paths.folder, numbers)) for _ in range(4)]

    for process in processes:
        process.start()
    begun = [numbers.get() for _ in range(24)]
    for process in processes:
        process.join()

    assert sorted(begun) == list(range(24))
    assert numbers.empty()


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

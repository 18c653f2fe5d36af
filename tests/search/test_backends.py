import pickle
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from servers import Cluster
from sqlalchemy.exc import SQLAlchemyError

from search import backends, drivers
from search.errors import ConfigError, StorageError
from search.location import Location, parse_server
from search.paths import StudyPaths
from search.storage import alone, ask, backend_of, create_study, open_study, tell


def test_a_database_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(SQLAlchemyError, match="unable to open database file"):
        backends.SQLiteStorage(tmp_path / "study.db", tmp_path / "study.db.lock")

    assert not (tmp_path / "study.db").exists()


def make(paths: StudyPaths, location: Location | None = None) -> optuna.Study:
    create_study(
        paths,
        StudyDirection.MINIMIZE,
        metric="log_loss",
        attributes={},
        first_trials=[],
        location=location,
    )
    return open_study(paths)


@pytest.fixture
def on_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    """Return a study on a file that SQLite itself waits for no longer than a moment."""
    monkeypatch.setattr(backends, "BUSY_TIMEOUT_SECONDS", 0.05)
    return make(StudyPaths(tmp_path))


@pytest.fixture
def writer(on_file: optuna.Study) -> Iterator[sqlite3.Connection]:
    """Return somebody else who writes, and does not come to an end."""
    file = str(backend_of(on_file).place)
    with closing(sqlite3.connect(file, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def test_a_busy_file_is_waited_for(on_file: optuna.Study, writer: sqlite3.Connection) -> None:
    def finish() -> None:
        time.sleep(0.5)
        writer.rollback()

    thread = Thread(target=finish)
    thread.start()
    trial = ask(on_file, 1)
    thread.join()

    assert trial is not None
    assert tell(on_file, trial, TrialState.COMPLETE, 0.5)


def test_a_file_that_stays_busy_is_an_error(
    on_file: optuna.Study, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "PATIENCE_SECONDS", 0.3)
    assert writer.in_transaction

    with pytest.raises(StorageError, match=r"study\.db: cannot be used: database is locked; an"):
        ask(on_file, 1)


def test_a_trial_goes_on_after_its_server_has_thrown_out_everybody(
    cluster: Cluster, tmp_path: Path
) -> None:
    database = cluster.new_database()
    study = make(StudyPaths(tmp_path), parse_server(database))
    trial = ask(study, 1)
    assert trial is not None
    trial.report(2.0, 1)

    cluster.throw_out(database)
    trial.report(1.0, 2)

    assert tell(study, trial, TrialState.COMPLETE, 1.0)
    assert study.trials[0].intermediate_values == {1: 2.0, 2: 1.0}


def test_a_lock_that_a_lost_connection_gave_up_loses_no_trial(
    cluster: Cluster, tmp_path: Path
) -> None:
    database = cluster.new_database()
    study = make(StudyPaths(tmp_path), parse_server(database))

    with alone(study):
        cluster.throw_out(database)
        trial = ask(study, 1)

    assert trial is not None
    assert ask(study, 1) is None


def test_a_server_that_is_not_there_is_waited_for_no_longer_than_said(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "PATIENCE_SECONDS", 0.2)
    database = cluster.new_database()
    study = make(StudyPaths(tmp_path), parse_server(database))
    name = database.rpartition("/")[2]

    cluster.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    cluster.throw_out(database)

    with pytest.raises(StorageError, match=rf"/{name}: cannot be used: .*not currently accepting"):
        ask(study, 1)


def test_a_process_has_one_connection_to_a_study(cluster: Cluster, tmp_path: Path) -> None:
    database = cluster.new_database()
    study = make(StudyPaths(tmp_path), parse_server(database))
    others = [open_study(StudyPaths(tmp_path)) for _ in range(4)]

    for other in (study, *others):
        trial = ask(other, 5)
        assert trial is not None
        trial.report(1.0, 1)

    with backend_of(study).raw() as connection:
        query = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert connection.execute(query).fetchone() == (1,)


def test_a_storage_can_be_sent_to_another_process(place: tuple[StudyPaths, Location]) -> None:
    paths, location = place
    backend = backend_of(make(paths, location))

    sent = pickle.loads(pickle.dumps(backend))  # noqa: S301  # our own

    assert sent.get_study_id_from_name(paths.name) > 0
    with sent.alone():
        pass
    sent.remove_session()
    sent.engine.dispose()


def test_a_server_without_driver_is_refused_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(ConfigError, match=r'pip install "concertino\[postgresql\]"'):
        make(StudyPaths(tmp_path), parse_server("postgresql://h/d"))


def test_a_study_of_that_name_on_the_server_is_left_alone(
    place: tuple[StudyPaths, Location], shared_database: str, tmp_path: Path
) -> None:
    paths = place[0]
    make(paths, parse_server(shared_database))
    other = StudyPaths(tmp_path / "elsewhere" / paths.name)
    other.folder.mkdir(parents=True)

    with pytest.raises(StorageError, match=rf"has a study '{paths.name}' already, not of this f"):
        make(other, parse_server(shared_database))

    assert not other.storage_note.exists()


def test_what_a_killed_process_left_unfinished_is_made_anew(
    cluster: Cluster, tmp_path: Path
) -> None:
    server = parse_server(cluster.new_database())
    left = backends.PostgreSQLStorage(server, "any", new=True)
    optuna.create_study(storage=left, study_name="one (unfinished)")
    paths = StudyPaths(tmp_path / "one")
    paths.folder.mkdir()

    study = make(paths, server)

    assert [found.study_name for found in backend_of(study).get_all_studies()] == ["one"]


@pytest.mark.parametrize(
    ("state", "passes"),
    [("40P01", True), ("57P01", True), ("08006", True), ("23505", False), ("53100", False)],
)
def test_only_what_may_pass_is_tried_again(state: str, passes: bool) -> None:  # noqa: FBT001
    class ServerError(Exception):
        sqlstate = state

    assert drivers.may_pass(ServerError()) is passes

import importlib.util
import math
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from runs import Shell, make_tiny_study
from servers import Cluster, find_programs, running_cluster

from search import checkpoints
from search.location import Location, SQLiteFile, parse_server
from search.paths import StudyPaths
from search.study import Study


@pytest.fixture(autouse=True)
def _without_settings_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CONCERTINO_"):
            monkeypatch.delenv(name)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(folder=tmp_path)


@pytest.fixture
def saved_after_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trials in this process write a checkpoint after each round, however short."""
    monkeypatch.setattr(checkpoints, "MIN_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoints, "MAX_SHARE_OF_TIME", math.inf)


@pytest.fixture(scope="session")
def unstarted(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study of which no trial has begun; no test may change it."""
    studies = tmp_path_factory.mktemp("unstarted") / "studies"
    return make_tiny_study(studies, name="fresh")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Return a PostgreSQL server of this session; it takes some two seconds."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip('PostgreSQL\'s driver is not installed (pip install "psycopg[binary]")')
    with running_cluster(programs) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_database(cluster: Cluster) -> str:
    """Return the URL of a database for studies that have names of their own."""
    return cluster.new_database()


_numbers = count()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[StudyPaths, Location]:
    """Return the folder of a study that is not made yet, and where it shall be stored."""
    paths = StudyPaths(tmp_path / f"study-{next(_numbers)}")
    paths.folder.mkdir()
    if request.param == "sqlite":
        return paths, SQLiteFile(paths.database)
    return paths, parse_server(request.getfixturevalue("shared_database"))

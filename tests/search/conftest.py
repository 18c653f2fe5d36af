import os
from pathlib import Path

import pytest
from runs import TINY, Finished, Shell, make_tiny_study

from search.study import Study


@pytest.fixture(autouse=True)
def _without_settings_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CONCERTINO_"):
            monkeypatch.delenv(name)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(folder=tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a study of six digits trials, run as a user does; it takes some ten seconds."""
    shell = Shell(folder=tmp_path_factory.mktemp("finished"))
    ran = shell.run("run", "--name", "whole", "--trials", "6", "--workers", "2", *TINY)
    return Finished(shell=shell, ran=ran)


@pytest.fixture(scope="session")
def unstarted(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study of which no trial has begun; no test may change it."""
    studies = tmp_path_factory.mktemp("unstarted") / "studies"
    return make_tiny_study(studies, name="fresh")

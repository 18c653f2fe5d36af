import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from search.cli import COMMANDS, main
from search.study import Study


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], words: str, code: int) -> str:
    """Run a command that must fail, and return what it says: one line on stderr, nothing else."""
    assert main(words.split()) == code

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err.removeprefix("error: ")


def test_a_second_run_on_a_study_is_refused(
    unstarted: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(unstarted.paths.supervisor_lock, is_singleton=False):
        told = refused(capsys, f"resume fresh --studies {unstarted.paths.folder.parent}", 1)

        assert main(["status", "fresh", "--studies", str(unstarted.paths.folder.parent)]) == 0

    assert told.startswith("another run is working on study 'fresh'")
    assert capsys.readouterr().out.startswith("study fresh: running\n")


def test_an_empty_folder_lists_no_study(capsys: pytest.CaptureFixture[str]) -> None:
    Path("studies").mkdir()

    assert main(["list"]) == 0
    assert main(["list", "--json"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("there is no study in studies yet")
    assert json.loads(lines[1]) == {"schema": 1, "studies": []}


def test_a_folder_that_is_not_there_lists_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 3

    shown = capsys.readouterr()
    assert shown.err.startswith("error: there is no study in studies yet")
    assert shown.out == ""


def test_the_flag_goes_before_the_variable(
    unstarted: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONCERTINO_STUDIES", str(unstarted.paths.folder.parent))

    assert main(["status", "fresh"]) == 0
    assert capsys.readouterr().out.startswith("study fresh: not running")
    assert main(["status", "fresh", "--studies", "elsewhere"]) == 3


def test_help_of_every_command_loads_no_heavy_library() -> None:
    program = f"""
import contextlib, io, sys
from search.cli import main

for name in {list(COMMANDS)}:
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main([name, "--help"]) == 0, name
    assert told.getvalue().startswith(f"Usage: python -m search {{name}}"), name
print(sorted({{"torch", "optuna", "sklearn", "scipy", "numpy", "PIL"}} & set(sys.modules)))
"""

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert ran.stderr == ""
    assert ran.stdout == "[]\n"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0

    assert capsys.readouterr().out.startswith("concertino 0.")

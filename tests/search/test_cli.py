import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from filelock import FileLock
from runs import draw_folder

from search.cli import COMMANDS, main
from search.study import Study

WRONG_FLAGS = [
    ("frobnicate", 'Unknown command "frobnicate". Available commands: run,'),
    ("run --trails 5", "Unknown option: --trails. Did you mean --trials?"),
    ("run extra", "Unused Tokens: ['extra']"),
    ("run --trials many", "--trials: Input should be a valid integer"),
    ("run --trials 0", "--trials: Input should be greater than or equal to 1, got '0'"),
    ("run --epochs 0.5", "--epochs: Input should be a valid integer"),
    ("run --budget soon", "--budget: expected a time such as 90s, 15m or 1h30m, got 'soon'"),
    ("run --trial-timeout 0s", "--trial-timeout: expected a time such as 90s"),
    ("run --workers 0", "--workers: Input should be greater than or equal to 1"),
    ("run --seed -1", "--seed: Input should be greater than or equal to 0, got '-1'"),
    ("run --image-size 2", "--image-size: Input should be greater than or equal to 4, got '2'"),
    ("run --limit-train 1", "--limit-train: Input should be greater than or equal to 2"),
    ("run --keep 0", "--keep: Input should be greater than or equal to 1"),
    ("run --max-members 0", "--max-members: Input should be greater than or equal to 1"),
    ("run --preset huge", "--preset: Input should be 'quick', 'balanced' or 'best', got 'huge'"),
    ("run --metric f1", "--metric: Input should be 'log_loss', 'accuracy',"),
    ("run --sampler best", "--sampler: Input should be 'tpe', 'random', 'grid',"),
    ("run --pruner hard", "--pruner: Input should be 'median', 'none',"),
    ("run --fit squeeze", "--fit: Input should be 'crop', 'pad' or 'stretch', got 'squeeze'"),
    ("run --space huge", "--space: known spaces are auto, default, digits, small; got 'huge'"),
    ("run --name ../x", "--name: a name has letters, digits, dots, dashes and underscores"),
    (
        "run --devices gpu",
        "devices: expected auto, cpu or a list such as cuda:0,cuda:1, got 'gpu'",
    ),
    ("run --devices cuda:99", "devices: cuda:99 is not there; torch sees"),
    ("run --vary.flip none", "vary: unknown field 'flip'; did you mean 'flips'"),
    ("run --vary.flips sideways", "vary: flips.0: Input should be 'none', 'random' or"),
    ("run --config absent.toml", "absent.toml: cannot be read: No such file or directory"),
    ("space dflt", "unknown space 'dflt'; did you mean 'default'"),
    ("best --top 0", 'Invalid value "0" for --top. Must be >= 1'),
    ("ensemble --method magic", 'Invalid value "magic" for --method. Choose from: "single"'),
    ("ensemble --max-members 0", 'Invalid value "0" for --max-members. Must be >= 1'),
    ("export --method magic", 'Invalid value "magic" for --method'),
    ("dashboard --port 70000", 'Invalid value "70000" for --port. Must be <= 65535'),
]
WRONG_DATA = [
    ("absent", "absent: no such folder, file or data set; known are cifar10"),
    ("cifer10", "cifer10: no such folder, file or data set; did you mean 'cifar10'"),
    ("column.csv", "column.csv: no such file or folder; did you mean 'columns.csv'?"),
    ("pictures/two", "pictures/two: no such file or folder; pictures is not there either"),
    ("empty", "empty: no pictures and no folders; expected one folder for each class"),
    ("one", "one: only one class, 'left'; a search needs at least 2 classes"),
    ("few", "class 'right' has 2 images: none is left for the ens role"),
    ("columns.csv", "columns.csv: no column 'path' or"),
    ("nothing.npz", "nothing.npz: no images; found arrays"),
    ("text.txt", "text.txt: expected a folder, a .csv or an .npz file"),
    ("mnist", "mnist is not in "),
]


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


@pytest.mark.parametrize(
    ("words", "message"), WRONG_FLAGS, ids=[words for words, _ in WRONG_FLAGS]
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, words, 2).startswith(message)
    assert not Path("studies/digits").exists()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("trials = ", "study.toml: not valid TOML: Invalid value"),
        ("trails = 5", "study.toml: unknown key 'trails'; did you mean 'trials'"),
        ("trials = 0", "study.toml: trials: Input should be greater than or equal to 1"),
        ("preset = 'huge'", "preset: known presets are quick, balanced, best; got 'huge'"),
    ],
)
def test_a_wrong_file_is_named(
    toml: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("study.toml").write_text(toml, encoding="utf-8")

    assert refused(capsys, "run --config study.toml", 2).startswith(message)
    assert refused(capsys, "run --workers 2 --config study.toml", 2).startswith(message)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("CONCERTINO_TRIALS", "many", "environment: trials: Input should be a valid integer"),
        ("CONCERTINO_PRESET", "huge", "preset: known presets are quick, balanced, best"),
        ("CONCERTINO_VARY", "{", 'CONCERTINO_VARY: expected JSON such as {"flips": "none"}'),
        ("CONCERTINO_DEVICES", "gpu", "devices: expected auto, cpu or a list"),
    ],
)
def test_a_wrong_variable_is_refused(
    variable: str,
    text: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, text)

    assert refused(capsys, "run", 2).startswith(message)


@pytest.mark.parametrize(("data", "message"), WRONG_DATA, ids=[data for data, _ in WRONG_DATA])
def test_data_that_cannot_be_searched_is_one_line_and_exit_code_2(
    data: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_folder(tmp_path / "two", {"left": 1, "right": 1})
    draw_folder(tmp_path / "one", {"left": 9})
    draw_folder(tmp_path / "few", {"left": 9, "right": 2})
    Path("empty").mkdir()
    Path("columns.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    Path("text.txt").write_text("hello", encoding="utf-8")
    np.savez("nothing.npz", other=np.zeros(3))

    told = refused(capsys, f"run --data {data} --name wrong --data-root {tmp_path}", 2)

    assert told.startswith(message)
    assert data != "mnist" or "add --download" in told
    assert not Path("studies/wrong").exists()


@pytest.mark.parametrize(
    "command", ["status", "best", "ensemble", "export", "dashboard", "resume"]
)
def test_a_study_that_is_not_there_is_exit_code_3(
    command: str, unstarted: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = unstarted.paths.folder.parent

    told = refused(capsys, f"{command} absent --studies {studies}", 3)
    newest = refused(capsys, f"{command} --studies nowhere", 3)

    assert told.startswith(f"there is no study 'absent' in {studies}; `python -m search list`")
    assert newest.startswith("there is no study in nowhere yet; `python -m search run` makes one")


@pytest.mark.parametrize(
    "command", ["status", "best", "ensemble", "export", "dashboard", "resume"]
)
def test_a_broken_database_is_exit_code_1(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("studies/broken").mkdir(parents=True)
    Path("studies/broken/study.db").write_bytes(b"This was a database once. " * 100)

    told = refused(capsys, f"{command} broken", 1)

    assert told.startswith("studies/broken/study.db: not the database of study 'broken'")


def test_a_study_of_other_tools_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    Path("studies/other").mkdir(parents=True)
    optuna.create_study(storage="sqlite:///studies/other/study.db", study_name="other")

    told = refused(capsys, "status other", 1)

    assert told.startswith("study 'other' was not made by `python -m search run`")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("best", "study 'fresh' has no complete trial yet"),
        ("ensemble", "study 'fresh' has no finished trial to build an ensemble from"),
        ("export", "study 'fresh' has no ensemble yet; `python -m search ensemble` builds it"),
    ],
)
def test_a_study_without_trials_has_nothing_to_show(
    command: str, message: str, unstarted: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, f"{command} fresh --studies {unstarted.paths.folder.parent}", 3)

    assert told.startswith(message)


def test_another_seed_is_another_study(
    unstarted: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = unstarted.paths.folder.parent

    told = refused(capsys, f"run --name fresh --seed 3 --studies {studies}", 2)

    assert told.startswith("study 'fresh' was started with seed = 0, got 3; go on without it, or")


def test_a_second_run_on_a_study_is_refused(
    unstarted: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(unstarted.paths.supervisor_lock, is_singleton=False):
        told = refused(capsys, f"resume fresh --studies {unstarted.paths.folder.parent}", 1)

        assert main(["status", "fresh", "--studies", str(unstarted.paths.folder.parent)]) == 0

    assert told.startswith("another run is working on study 'fresh'")
    assert capsys.readouterr().out.startswith("study fresh: running\n")


@pytest.mark.parametrize("trials", ["many", "-3", "+"])
def test_more_trials_must_be_a_number(
    trials: str, unstarted: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = unstarted.paths.folder.parent

    told = refused(capsys, f"resume fresh --trials={trials} --studies {studies}", 2)

    assert told.startswith("--trials: expected a number such as 150 or +50, got ")


def test_an_empty_folder_lists_no_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert main(["list", "--json"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("there is no study in studies yet")
    assert json.loads(lines[1]) == {"schema": 1, "studies": []}


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

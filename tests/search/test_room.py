"""A disk that is too small, or full: real ones, which need the right to mount."""

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from optuna.study import StudyDirection
from runs import TINY, Command, Shell, n_reports, read_states
from safetensors.torch import load_file

from search.checkpoints import Checkpoint, save_checkpoint
from search.errors import DiskFullError
from search.logs import log_to_file
from search.owners import this_process
from search.paths import StudyPaths, write_whole
from search.predictions import write_predictions, write_weights
from search.room import is_paused, needed_bytes, pause_sentence, wait_for_room
from search.storage import ask, create_study, hand_back_own, open_study
from search.study import Study

DISK_BYTES = 48_000_000
LONGER = (
    *("--space", "small", "--vary.width", "8", "--vary.depth", "2", "--epochs", "40"),
    *("--limit-train", "400", "--workers", "2", "--pruner", "none", "--devices", "cpu"),
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = [_path_of("mount"), "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run([_path_of("umount"), "--lazy", str(folder)], check=True)


def _path_of(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"a disk cannot be mounted here: there is no program {program}")
    return path


def fill(folder: Path) -> Path:
    """Leave no room on the disk of a folder; return the file that takes it all."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def no_temporary_files(folder: Path) -> bool:
    return not [*folder.rglob("*.tmp")]


def test_what_has_no_room_leaves_what_was_there_and_nothing_else(disk: Path) -> None:
    paths = StudyPaths(disk / "one")
    trial = paths.trial(0)
    write_whole(trial.history, b"before")
    fill(disk)
    large = torch.zeros(100_000)
    checkpoint = Checkpoint(
        n_steps=1, training={"x": large}, history=[], best_round=0, best_weights={}, seconds=0.0
    )

    writers: tuple[Callable[[], None], ...] = (
        lambda: write_whole(trial.history, bytes(10_000)),
        lambda: write_predictions(trial, "ens", np.zeros((1000, 10), np.float32)),
        lambda: write_weights(trial, {"x": large}),
        lambda: save_checkpoint(trial, checkpoint),
        lambda: write_whole(paths.trial(1).history, bytes(10_000)),
    )
    for write in writers:
        with pytest.raises(DiskFullError, match=r"no room left on the disk \(0 B free\); `python"):
            write()

    assert trial.history.read_bytes() == b"before"
    assert [path.name for path in paths.folder.rglob("*") if path.is_file()] == ["history.json"]


def test_a_file_that_cannot_be_written_for_another_reason_keeps_its_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotADirectoryError):
        write_whole(tmp_path / "file" / "below", b"text")


def test_lines_of_the_log_wait_until_there_is_room(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("search.test")
    handler = log_to_file(disk / "log.jsonl")
    try:
        logger.info("before")
        filler = fill(disk)
        for number in range(200):
            logger.info("while it was full: %d", number)
        in_between = (disk / "log.jsonl").read_bytes()
        filler.unlink()
        logger.info("after")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()

    lines = (disk / "log.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [json.loads(line)["message"] for line in lines]
    assert len(in_between) <= 4096  # what fits into the block that the file had
    assert messages[0] == "before"
    assert messages[1:201] == [f"while it was full: {number}" for number in range(200)]
    assert messages[201:] == ["after"]
    assert capsys.readouterr().err == ""


def test_a_line_that_had_no_room_does_not_end_in_that_of_another_process(disk: Path) -> None:
    logger = logging.getLogger("search.test")
    one = log_to_file(disk / "log.jsonl")
    logger.info("before")
    filler = fill(disk)
    for number in range(200):
        logger.info("while it was full: %d", number)
    logging.getLogger().removeHandler(one)
    filler.unlink()
    other = log_to_file(disk / "log.jsonl")
    logger.info("of the other")
    logging.getLogger().removeHandler(other)
    for handler in (other, one):
        handler.close()

    lines = (disk / "log.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [json.loads(line)["message"] for line in lines]
    assert sorted(messages) == sorted(
        ["before", "of the other", *(f"while it was full: {number}" for number in range(200))]
    )


@pytest.fixture
def paths(disk: Path) -> StudyPaths:
    """Return a study of Optuna on a disk of its own."""
    paths = StudyPaths(disk / "one")
    paths.folder.mkdir()
    create_study(
        paths, StudyDirection.MINIMIZE, metric="x", attributes={}, first_trials=[{"x": 0.5}]
    )
    return paths


def test_a_database_without_room_says_so_and_goes_on_where_it_was(paths: StudyPaths) -> None:
    study = open_study(paths)
    trial = ask(study, 2)
    assert trial is not None
    filler = fill(paths.folder)

    def write_much() -> None:
        for step in range(10_000):  # what is left of the last block takes the first ones
            trial.set_user_attr(f"note {step}", "x" * 1000)

    with pytest.raises(DiskFullError, match="database or disk is full; free some space, then"):
        write_much()
    with pytest.raises(DiskFullError):
        hand_back_own(study)
    filler.unlink()
    hand_back_own(study)
    again = ask(study, 2)

    assert again is not None
    assert again.number == trial.number
    study.tell(again, 0.25)
    with closing(sqlite3.connect(paths.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    states = read_states(paths.database)
    assert states == ["COMPLETE"]


def test_only_ones_own_trials_and_those_of_nobody_are_handed_back(paths: StudyPaths) -> None:
    study = open_study(paths)
    others = ask(study, 9)
    assert others is not None
    others.set_user_attr("owner", replace(this_process(), pid=1).to_json())
    ask(study, 9)
    study.ask()  # as one that was killed, or had no room, before it could say whose it is

    hand_back_own(study)

    assert read_states(paths.database) == ["RUNNING", "WAITING", "WAITING"]
    first = ask(study, 9)
    assert first is not None
    assert first.number == 1


def test_a_wait_ends_when_there_is_room(paths: StudyPaths) -> None:
    filler = fill(paths.folder)
    looks: list[bool] = []

    def look() -> bool:
        looks.append(is_paused(paths))
        filler.unlink(missing_ok=True)
        return False

    assert not is_paused(paths)
    paths.pause_lock.touch()
    assert wait_for_room(paths, 1_000_000, look)
    assert looks == [True]
    assert not is_paused(paths)


def test_a_wait_ends_when_it_is_told_to(paths: StudyPaths) -> None:
    fill(paths.folder)

    assert not wait_for_room(paths, 1_000_000, lambda: True)


def test_no_wait_where_there_is_room(paths: StudyPaths) -> None:
    assert wait_for_room(paths, 1_000_000, lambda: pytest.fail("it waits"))


def test_a_pause_says_what_is_free_and_what_frees_more(paths: StudyPaths) -> None:
    fill(paths.folder)

    assert pause_sentence(paths, 16_500_000) == (
        f"paused, no room on the disk of {paths.folder}: 0 B free, 16.5 MB needed; "
        "`python -m search clean` frees what no study needs, and the search goes on by itself"
    )


def test_a_trial_needs_room_for_its_predictions_and_some_more(unstarted: Study) -> None:
    sizes = unstarted.record.role_sizes
    n_images = sizes["stop"] + sizes["ens"] + sizes["test"]

    needed = needed_bytes(unstarted.record, [])

    assert needed == 16_000_000 + 64_000 + 4 * 10 * n_images


def start_and_fill(shell: Shell, *words: str) -> tuple[Command, Path]:
    """Start a search, and take all room when both workers are in the middle of a trial."""
    database = shell.studies / "digits" / "study.db"
    before = n_reports(database)
    command = shell.start("run", *LONGER, *words)
    command.wait_for(lambda: read_states(database).count("RUNNING") == 2)
    command.wait_for(lambda: n_reports(database) >= before + 4)
    filler = fill(shell.folder)
    paths = StudyPaths(database.parent)
    command.wait_for(lambda: is_paused(paths))
    return command, filler


@pytest.mark.slow
def test_a_search_waits_on_a_full_disk_and_ends_whole(disk: Path) -> None:
    shell = Shell(folder=disk)
    paths = StudyPaths(disk / "studies" / "digits")

    # Ctrl-C while it waits: nothing can be written, and nothing has to be.
    command, filler = start_and_fill(shell, "--trials", "4")
    os.killpg(command.process.pid, signal.SIGINT)
    stopped = command.wait()
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1].startswith("interrupted; everything is kept")
    assert "Traceback" not in stopped.err

    # The same command goes on, meets the full disk again, and ends by itself once there is room.
    filler.unlink()
    command, filler = start_and_fill(shell, "--trials", "4")
    states = read_states(paths.database)
    filler.unlink()
    ran = command.wait()

    told = ran.err.splitlines()
    paused = [line for line in told if line.startswith("paused, no room on the disk of studies")]
    assert ran.code == 0, ran.err
    assert len(paused) == told.count("there is room on the disk again; the search goes on") >= 1
    assert "`python -m search clean` frees what no study needs" in paused[0]
    assert "Traceback" not in ran.err
    assert states.count("COMPLETE") < 4
    assert_whole(shell, n_trials=4)


def assert_whole(shell: Shell, *, n_trials: int) -> None:
    study = shell.study("digits")
    trials = study.trials()[:n_trials]
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * n_trials
    assert study.counts().finished == n_trials
    assert study.counts().running == study.counts().failed == 0
    assert all(sorted(trial.intermediate_values) == [*range(1, 41)] for trial in trials)
    with closing(sqlite3.connect(study.paths.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    n_images = study.record.role_sizes
    for trial in trials:
        files = study.paths.trial(trial.number)
        assert load_file(files.weights)
        for role in ("stop", "ens", "test"):
            assert np.load(files.predictions(role)).shape == (n_images[role], 10)
        assert not files.checkpoint.exists()
    assert len([*study.paths.artifacts.iterdir()]) == 2 * n_trials
    assert no_temporary_files(study.paths.folder)
    for line in study.paths.log.read_text(encoding="utf-8").splitlines():
        json.loads(line)


@pytest.mark.slow
def test_a_study_that_will_not_fit_is_told_before_it_begins(disk: Path) -> None:
    (disk / "ballast").write_bytes(bytes(26_000_000))

    ran = Shell(folder=disk).run("run", *TINY, "--trials", "1", "--workers", "1")

    assert ran.code == 0, ran.err
    assert "may be too small" not in ran.err

    ran = Shell(folder=disk).run("resume", "--trials", "400", "--budget", "1s")

    assert "the disk of studies/digits may be too small: " in ran.err.splitlines()[0]

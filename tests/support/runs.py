"""Real runs for tests: commands in processes of their own, tiny studies, drawn pictures."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from search.config import StudyConfig
from search.paths import StudyPaths
from search.preparation import make_study
from search.study import Study, load_study

# Two stages of eight channels on a few hundred digits: a trial takes half a second.
TINY = (
    *("--epochs", "2", "--space", "small", "--vary.width", "8", "--vary.depth", "2"),
    *("--limit-train", "200", "--devices", "cpu"),
)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What one command left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that runs in a process of its own."""

    process: "subprocess.Popen[str]"
    database: Path

    def wait(self, seconds: float = 90) -> Ran:
        out, err = self.process.communicate(timeout=seconds)
        return Ran(code=self.process.returncode, out=out, err=err)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is true of the study, while the command runs."""

        def holds() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return condition()

        until(holds, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Shell:
    """Runs commands the way a user does, in a folder of its own."""

    folder: Path

    @property
    def studies(self) -> Path:
        return self.folder / "studies"

    def start(self, *words: str, name: str = "digits") -> Command:
        process = subprocess.Popen(
            [sys.executable, "-m", "search", *words],
            cwd=self.folder,
            env={**_environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return Command(process=process, database=self.studies / name / "study.db")

    def run(self, *words: str, seconds: float = 120) -> Ran:
        return self.start(*words).wait(seconds)

    def study(self, name: str) -> Study:
        return load_study(name, studies=self.studies)


def _environment() -> dict[str, str]:
    said = {name: text for name, text in os.environ.items() if not name.startswith("CONCERTINO_")}
    return {**said, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A whole run of two workers on digits, that every test may read and none may change."""

    shell: Shell
    ran: Ran

    @property
    def study(self) -> Study:
        return self.shell.study("whole")


def make_tiny_study(studies: Path, **settings: object) -> Study:
    """Make a study of tiny networks on digits, without running it."""
    config = StudyConfig.model_validate(
        {
            "epochs": 2,
            "space": "small",
            "vary": {"width": 8, "depth": 2},
            "limit_train": 200,
            "devices": "cpu",
            "trials": 3,
            **settings,
        }
    )
    paths = StudyPaths(studies / config.study_name)
    paths.folder.mkdir(parents=True)
    return Study(paths=paths, record=make_study(paths, config, studies, None))


def read_states(database: Path) -> list[str]:
    """Return the states of all trials, by number, without Optuna."""
    if not database.is_file():
        return []
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        rows = connection.execute("SELECT state FROM trials ORDER BY number").fetchall()
    finally:
        connection.close()
    return [row[0] for row in rows]


def n_reports(database: Path) -> int:
    """Count the reports of all trials."""
    if not database.is_file():
        return 0
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        rows = connection.execute("SELECT COUNT(*) FROM trial_intermediate_values").fetchall()
    finally:
        connection.close()
    return int(rows[0][0])


def worker_pids(log: Path) -> list[int]:
    """Return the process numbers of all workers that were ever started, by the log."""
    messages = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    return [int(text.split()[3]) for text in messages if text.endswith("started")]


def until(condition: Callable[[], bool], *, seconds: float) -> None:
    """Wait until something is true."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, f"nothing happened in {seconds} s"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    return state != "Z"


def draw_folder(root: Path, n_images: Mapping[str, int], *, suffix: str = "png") -> Path:
    """Draw 8 pixel pictures, one folder for each class; the class is the brighter side."""
    generator = np.random.default_rng(7)
    for label, (name, count) in enumerate(n_images.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 90, size=(8, 8, 3), dtype=np.uint8)
            pixels[:, 4 * label : 4 * label + 4] += 120
            Image.fromarray(pixels).save(folder / f"{index:03d}.{suffix}")
    return root

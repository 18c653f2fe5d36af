"""What is lost of a search whose processes are killed all the time, while a dashboard looks on.

    python benchmarks/faults.py

300 short trials of four workers on digits. Every few seconds, after some more trials, a worker
taken at random gets SIGKILL; once the run itself does, and is started again with the same command.
The study's dashboard is asked for new trials all the time. At the end everything is counted: in
the database, in the log, and in the files that each trial left.
"""

import argparse
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import numpy as np
from harness import Bar, Outcome, run_benchmark
from optuna.trial import FrozenTrial, TrialState
from safetensors import SafetensorError

from search.errors import SearchError
from search.paths import StudyPaths
from search.predictions import read_weights
from search.retention import kept_trials
from search.study import Study, load_study
from search.trials import FINISHED
from spaces.networks.builders import build_network
from spaces.recipe import recipe_from_json

NAME = "faults"
ROLES = ("stop", "ens", "test")
MAX_RUNS_THAT_GIVE_UP = 5
SHORT = (
    *("--space", "small", "--vary.width", "8", "--vary.depth", "2"),
    *("--limit-train", "200", "--workers", "4", "--devices", "cpu"),
)


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL."""

    victim: str
    """`worker` or `run`."""
    trials: tuple[int, ...]
    """That were running in it."""


@dataclass
class Attack:
    """A search that is run, and killed, until it has all its trials."""

    paths: StudyPaths
    n_trials: int
    n_epochs: int
    seconds_between_kills: float
    trials_between_kills: int = 3
    """So that the search gets on, however slow the machine is."""
    generator: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311
    kills: list[Kill] = field(default_factory=list)
    gave_up: list[str] = field(default_factory=list)
    """What runs said that ended without all trials, though nobody killed them."""
    _next_at: float = 0.0
    _next_from: int = 1
    """Trials that must be finished before the next kill."""

    def go_on_until_done(self) -> None:
        """Run, kill, and run again."""
        run = self._start()
        try:
            while run.poll() != 0 and len(self.gave_up) < MAX_RUNS_THAT_GIVE_UP:
                if run.poll() is not None:
                    self.gave_up.append(_last_line(self.paths.folder.parent / "run.err"))
                    run = self._start()
                time.sleep(0.1)
                if not self._is_time_to_kill():
                    continue
                if not self._has_killed_a_run and self._n_finished() >= self.n_trials / 2:
                    run = self._kill_run(run)
                else:
                    self._kill_worker()
        finally:
            run.kill()  # one that has ended does not mind
            run.wait()

    def _is_time_to_kill(self) -> bool:
        now, n_finished = time.monotonic(), self._n_finished()
        if now < self._next_at or n_finished < self._next_from:
            return False
        self._next_at = now + self.seconds_between_kills * self.generator.uniform(0.5, 1.5)
        self._next_from = n_finished + self.trials_between_kills
        return True

    @property
    def _has_killed_a_run(self) -> bool:
        return any(kill.victim == "run" for kill in self.kills)

    def _start(self) -> "subprocess.Popen[bytes]":
        with (self.paths.folder.parent / "run.err").open("ab") as errors:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "search", "run", "--name", NAME, *SHORT),
                    *("--epochs", str(self.n_epochs)),
                    *("--trials", str(self.n_trials), "--studies", str(self.paths.folder.parent)),
                ],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def _kill_worker(self) -> None:
        workers = _living_workers(self.paths.log)
        if not workers:
            return
        pid = self.generator.choice(sorted(workers))
        trials = tuple(number for number, slot in self._running().items() if slot == workers[pid])
        os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(victim="worker", trials=trials))

    def _kill_run(self, run: "subprocess.Popen[bytes]") -> "subprocess.Popen[bytes]":
        """Kill the run alone; its workers must notice by themselves before the next one."""
        self.kills.append(Kill(victim="run", trials=tuple(self._running())))
        run.kill()
        run.wait()
        return self._start()

    def _n_finished(self) -> int:
        states = [state.name for state in FINISHED]
        query = "SELECT COUNT(*) FROM trials WHERE state IN (?, ?)"
        return int(self._ask(query, states)[0][0]) if self.paths.database.is_file() else 0

    def _running(self) -> dict[int, int]:
        """Return the slot of each running trial."""
        if not self.paths.database.is_file():
            return {}
        query = (
            "SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id) "
            "WHERE state = 'RUNNING' AND key = 'slot'"
        )
        return {number: int(slot) for number, slot in self._ask(query, ())}

    def _ask(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.paths.database, timeout=60)) as connection:
            return connection.execute(query, values).fetchall()


@dataclass
class Poller:
    """A browser that looks at the study all the time."""

    paths: StudyPaths
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look on from a thread of its own."""
        ended = threading.Event()
        thread = threading.Thread(target=self._look, args=(ended,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self, ended: threading.Event) -> None:
        while not self.paths.database.is_file():
            if ended.wait(0.2):
                return
        words = ["dashboard", NAME, "--no-browser", "--port", "0"]
        server = subprocess.Popen(
            [sys.executable, "-m", "search", *words, "--studies", str(self.paths.folder.parent)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            url = _url_of(server)
            while True:  # once at least, also where the search was over sooner than this began
                self._poll(url)
                if ended.wait(1.0):
                    break
        finally:
            server.terminate()
            server.communicate()

    def _poll(self, url: str) -> None:
        began = time.monotonic()
        try:
            with urlopen(f"{url}/api/studies/1?after=0", timeout=60) as answer:  # noqa: S310
                json.load(answer)
        except (OSError, ValueError) as error:
            self.failures.append(repr(error))
        self.seconds.append(time.monotonic() - began)


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a study is worth after an attack."""

    asked: int
    states: Counter[TrialState]
    doubled: int
    integrity: str
    n_kept: int
    broken_weights: list[int]
    broken_predictions: list[int]
    broken_reports: list[int]
    checkpoints_left: list[int]
    """Of finished trials, which need none."""
    n_unfinished_files: int
    """That killed processes were writing; `clean` frees them a minute later."""

    @property
    def finished(self) -> int:
        """Trials that are complete or pruned."""
        return sum(self.states[state] for state in FINISHED)

    @property
    def lost(self) -> int:
        """Trials that were asked for, and are not there or not whole."""
        broken = {*self.broken_weights, *self.broken_predictions, *self.broken_reports}
        return max(0, self.asked - self.finished) + len(broken)


def count(study: Study, asked: int) -> Count:
    """Look at everything that a study left."""
    trials = study.trials()
    finished = [trial for trial in trials if trial.state in FINISHED]
    config = study.record.config
    with closing(sqlite3.connect(study.paths.database)) as connection:
        integrity = str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    kept = kept_trials(trials, config.keep, config.metric)
    n_rounds = study.record.plan.n_rounds
    return Count(
        asked=asked,
        states=Counter(trial.state for trial in trials),
        doubled=max(0, len(finished) - asked) + _told_twice(study.paths.log),
        integrity=integrity,
        n_kept=len(kept),
        broken_weights=[trial.number for trial in kept if not _has_weights(study, trial)],
        broken_predictions=[
            trial.number
            for trial in finished
            if "log_loss" in trial.user_attrs and not _has_whole_predictions(study, trial)
        ],
        broken_reports=[
            trial.number
            for trial in finished
            if trial.state == TrialState.COMPLETE
            and sorted(trial.intermediate_values) != [*range(1, n_rounds + 1)]
        ],
        checkpoints_left=[
            trial.number
            for trial in finished
            if study.paths.trial(trial.number).checkpoint.exists()
        ],
        n_unfinished_files=len([*study.paths.folder.rglob("*.tmp")]),
    )


def measure(flags: argparse.Namespace) -> Outcome:
    """Attack a search; see the module."""
    n_trials, n_epochs, pause = (40, 8, 1.5) if flags.quick else (300, 32, 3.0)
    with TemporaryDirectory() as folder:
        paths = StudyPaths(Path(folder) / NAME)
        attack = Attack(
            paths=paths, n_trials=n_trials, n_epochs=n_epochs, seconds_between_kills=pause
        )
        poller = Poller(paths)
        began = time.monotonic()
        with poller.looking():
            attack.go_on_until_done()
        seconds = time.monotonic() - began
        study = load_study(NAME, studies=paths.folder.parent)
        found = count(study, n_trials)
        by_number = {trial.number: trial for trial in study.trials()}
    return Outcome(
        title=f"{n_trials} short trials, 4 workers, {len(attack.kills)} kills, {seconds:.0f} s",
        headings=(
            "killed",
            "times",
            "running in it",
            "now complete",
            "pruned",
            "failed",
            "running",
        ),
        rows=_rows(attack.kills, by_number),
        bars=_bars(found, attack, poller),
        figures={
            "finished": found.finished,
            "lost": found.lost,
            "doubled": found.doubled,
            "stuck": found.states[TrialState.RUNNING],
            "kills": len(attack.kills),
            "failed": found.states[TrialState.FAIL],
            "integrity": found.integrity,
            "kept": found.n_kept,
            "gave_up": attack.gave_up,
            "polls": len(poller.seconds),
            "failed_polls": poller.failures,
            "slowest_poll": max(poller.seconds, default=0.0),
            "unfinished_files": found.n_unfinished_files,
            "seconds": round(seconds, 1),
        },
        remarks=[
            _remark(found, poller),
            *(f"a run gave up: {line}" for line in attack.gave_up),
        ],
    )


def _remark(found: Count, poller: Poller) -> str:
    return (
        f"{found.states[TrialState.COMPLETE]} complete, {found.states[TrialState.PRUNED]} pruned, "
        f"{found.states[TrialState.FAIL]} failed and replaced; weights of {found.n_kept} trials "
        f"kept; {len(poller.seconds)} polls of the dashboard, the slowest "
        f"{max(poller.seconds, default=0.0):.1f} s; integrity_check: {found.integrity}; "
        f"{found.n_unfinished_files} unfinished files of killed processes, which `clean` frees"
    )


def _rows(kills: Sequence[Kill], trials: dict[int, FrozenTrial]) -> list[list[str]]:
    """Return, by what was killed, how the trials that were running in it ended."""
    groups = {
        "worker in a trial": [each for each in kills if each.victim == "worker" and each.trials],
        "worker between trials": [
            each for each in kills if each.victim == "worker" and not each.trials
        ],
        "run": [each for each in kills if each.victim == "run"],
    }
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
    rows = []
    for name, group in groups.items():
        met = [number for kill in group for number in kill.trials]
        ends = Counter(trials[number].state for number in met)
        rows.append([name, str(len(group)), str(len(met)), *(str(ends[each]) for each in states)])
    return rows


def _bars(found: Count, attack: Attack, poller: Poller) -> list[Bar]:
    none = {
        "lost": found.lost,
        "doubled": found.doubled,
        "stuck in RUNNING": found.states[TrialState.RUNNING],
        "kept weights that do not load": len(found.broken_weights),
        "trials without whole predictions": len(found.broken_predictions),
        "complete trials with other reports than one of each round": len(found.broken_reports),
        "faults in the database": int(found.integrity != "ok"),
        "runs that gave up": len(attack.gave_up),
        "polls of the dashboard that failed": len(poller.failures),
        "checkpoints left by finished trials": len(found.checkpoints_left),
    }
    n_kills = 5 if found.asked < 300 else 30
    runs_killed = sum(kill.victim == "run" for kill in attack.kills)
    return [
        Bar(name="finished", value=found.finished, limit=found.asked, better="higher"),
        *(Bar(name=name, value=value, limit=0, better="lower") for name, value in none.items()),
        Bar(name="kills", value=len(attack.kills), limit=n_kills, better="higher"),
        Bar(name="kills of the run itself", value=runs_killed, limit=1, better="higher"),
    ]


def _living_workers(log: Path) -> dict[int, int]:
    """Return the slots of the workers that live, by their process number."""
    if not log.is_file():
        return {}
    found: dict[int, int] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        if match := re.search(r"slot (\d+): worker (\d+) started", line):
            found[int(match[2])] = int(match[1])
    return {pid: slot for pid, slot in found.items() if _is_alive(pid)}


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _told_twice(log: Path) -> int:
    """Count the trials that were told to have ended more than once."""
    messages = [json.loads(line)["message"] for line in log.read_text("utf-8").splitlines()]
    ends = [
        match[1]
        for message in messages
        if (match := re.match(r"trial (\d+): (complete|pruned), ", message))
    ]
    return sum(n_ends - 1 for n_ends in Counter(ends).values())


def _has_weights(study: Study, trial: FrozenTrial) -> bool:
    recipe = recipe_from_json(trial.user_attrs["recipe"])
    network = build_network(recipe.architecture, study.record.task)
    try:
        network.load_state_dict(read_weights(study.paths.trial(trial.number)))
    except (SearchError, SafetensorError, RuntimeError, OSError) as error:
        print(f"trial {trial.number}: {error}", file=sys.stderr)
        return False
    return True


def _has_whole_predictions(study: Study, trial: FrozenTrial) -> bool:
    for role in ROLES:
        shape = (study.record.role_sizes[role], len(study.record.class_names))
        try:
            predicted = np.load(study.paths.trial(trial.number).predictions(role))
        except (OSError, ValueError) as error:
            print(f"trial {trial.number}: {error}", file=sys.stderr)
            return False
        if predicted.shape != shape or not np.allclose(
            np.exp(predicted).sum(axis=1), 1, atol=1e-3
        ):
            return False
    return True


def _url_of(server: "subprocess.Popen[str]") -> str:
    for line in server.stdout or ():
        if match := re.search(r"http://[\d.]+:\d+", line):
            return match[0]
    raise RuntimeError("the dashboard did not start")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[-1] if lines else "nothing"


if __name__ == "__main__":
    run_benchmark(
        "Kill a search's processes all the time, and count what it has at the end.", measure
    )

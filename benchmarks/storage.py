"""One SQLite study under 64 processes, and one of 5,000 trials, beside Optuna's own settings.

    python benchmarks/storage.py

The processes ask, report ten times and tell as fast as they can; 64 trials wait in the queue when
they begin, of which each must be begun once. Optuna's settings are those of the URL
`sqlite:///FILE`, and of the command `optuna-dashboard` with the same URL. Both sides run the same
code, one after the other on the same disk. Seconds are wall time, which is what a user waits, and
need a machine with nothing else to do; CPU time stands beside them.
"""

import argparse
import json
import multiprocessing
import os
import sqlite3
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import numpy as np
import optuna
from harness import Bar, Outcome, run_benchmark
from optuna.distributions import distribution_to_json
from optuna.exceptions import OptunaError
from optuna.study import StudyDirection
from sqlalchemy.exc import SQLAlchemyError

from search.config import StudyConfig
from search.errors import SearchError
from search.owners import ATTRIBUTE, this_process
from search.paths import StudyPaths
from search.preparation import make_study
from search.storage import create_study, open_study
from spaces.space import suggest_recipe

N_PROCESSES = 64
N_WAITING = 64
N_REPORTS = 10
N_ROUNDS = 24
Words = Sequence[str]
# What a locked database ends in, in the hands of Optuna: the last two hide it.
FAILURES = (SearchError, OptunaError, SQLAlchemyError, ValueError, AssertionError)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one process did."""

    begun: list[int]
    """Numbers of the trials that it was given."""
    n_finished: int
    seconds: list[float]
    """Of each call of the storage."""
    trial_seconds: list[float]
    errors: list[str]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What all processes together did to one study."""

    trials_per_second: float
    p99: float
    """Seconds of one call of the storage that 1 of 100 exceeds."""
    p99_trial: float
    slowest_trial: float
    n_errors: int
    kinds: dict[str, int]
    """How often each error came, the most frequent first."""
    n_twice: int
    """Waiting trials that were begun more than once."""
    n_incomplete: int
    """Finished trials without all their reports."""
    n_running: int
    """Trials that are for ever running."""


def _open_ours(folder: Path) -> optuna.Study:
    return open_study(StudyPaths(folder))


def _open_theirs(folder: Path) -> optuna.Study:
    return optuna.load_study(storage=f"sqlite:///{folder}/study.db", study_name=folder.name)


OPENERS: dict[str, Callable[[Path], optuna.Study]] = {"ours": _open_ours, "theirs": _open_theirs}


def work(who: str, folder: Path, start: Barrier, ends_in: float, results: "Queue[Work]") -> None:
    """Run trials for some seconds; the body of one process."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.simplefilter("ignore")  # of a trial that two processes run
    begun: list[int] = []
    n_finished, errors = 0, []
    calls: list[float] = []
    whole: list[float] = []
    start.wait()
    ends_at = time.monotonic() + ends_in
    study = None
    while time.monotonic() < ends_at:
        began = time.monotonic()
        try:
            study = study or OPENERS[who](folder)
            study.sampler = optuna.samplers.RandomSampler(seed=os.getpid())
            n_finished += _run_trial(study, begun, calls)
        except FAILURES as error:
            errors.append(f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
        whole.append(time.monotonic() - began)
    results.put(
        Work(begun=begun, n_finished=n_finished, seconds=calls, trial_seconds=whole, errors=errors)
    )


def _run_trial(study: optuna.Study, begun: list[int], seconds: list[float]) -> bool:
    @contextmanager
    def timed() -> Iterator[None]:
        at = time.monotonic()
        yield
        seconds.append(time.monotonic() - at)

    with timed():
        trial = study.ask()
    begun.append(trial.number)
    for name in ("w", "x", "y", "z"):
        with timed():
            trial.suggest_float(name, 0, 1)
    for step in range(N_REPORTS):
        with timed():
            trial.report(1 / (1 + step), step)
    with timed():
        trial.set_user_attr("slot", 0)
    with timed():
        study.tell(trial, trial.number)
    return True


def load(who: str, folder: Path, *, n_processes: int, seconds: float) -> Load:
    """Let many processes loose on a new study."""
    folder.mkdir()
    # By fork, or each would import for a second; SQLite wants no open file to be inherited, so the
    # study is made by a process of its own.
    context = multiprocessing.get_context("fork")
    maker = context.Process(target=_make_study, args=(who, folder))
    maker.start()
    maker.join()
    start, results = context.Barrier(n_processes), context.Queue()
    processes = [
        context.Process(target=work, args=(who, folder, start, seconds, results))
        for _ in range(n_processes)
    ]
    for process in processes:
        process.start()
    done = [results.get(timeout=seconds + 600) for _ in processes]
    for process in processes:
        process.join()
    return _sum_up(StudyPaths(folder), done)


def _make_study(who: str, folder: Path) -> None:
    waiting: list[dict[str, object]] = [{"w": number / N_WAITING} for number in range(N_WAITING)]
    if who == "ours":
        create_study(
            StudyPaths(folder),
            StudyDirection.MINIMIZE,
            metric="x",
            attributes={},
            first_trials=waiting,
        )
        return
    study = optuna.create_study(storage=f"sqlite:///{folder}/study.db", study_name=folder.name)
    for params in waiting:
        study.enqueue_trial(params)


def _sum_up(paths: StudyPaths, done: Sequence[Work]) -> Load:
    with closing(sqlite3.connect(paths.database, timeout=60)) as connection:
        states = dict(connection.execute("SELECT state, COUNT(*) FROM trials GROUP BY state"))
        incomplete = connection.execute(
            "SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE' AND (SELECT COUNT(*) FROM "
            "trial_intermediate_values AS each WHERE each.trial_id = trials.trial_id) != ?",
            (N_REPORTS,),
        ).fetchone()[0]
    calls = [each for one in done for each in one.seconds]
    trials = [each for one in done for each in one.trial_seconds]
    begun = Counter(number for one in done for number in one.begun)
    # Those that end late count with the time that they took.
    longest = max(sum(one.trial_seconds) for one in done)
    return Load(
        trials_per_second=sum(one.n_finished for one in done) / longest,
        p99=float(np.quantile(calls, 0.99)),
        p99_trial=float(np.quantile(trials, 0.99)),
        slowest_trial=max(trials),
        n_errors=sum(len(one.errors) for one in done),
        kinds=dict(Counter(error for one in done for error in one.errors).most_common()),
        n_twice=sum(count > 1 for count in begun.values()),
        n_incomplete=incomplete,
        n_running=states.get("RUNNING", 0),
    )


def make_large_study(studies: Path, n_trials: int) -> StudyPaths:
    """Make a study of digits with many finished trials, as a search leaves them, but untrained."""
    config = StudyConfig(data="digits", name="large", trials=n_trials, epochs=N_ROUNDS)
    paths = StudyPaths(studies / config.name)
    paths.folder.mkdir(parents=True)
    record = make_study(paths, config, studies, None)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    asker = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    generator = np.random.default_rng(1)
    with closing(sqlite3.connect(paths.database)) as connection, connection:
        (n_waiting,) = connection.execute("SELECT COUNT(*) FROM trials").fetchone()
        connection.execute("UPDATE trials SET state = 'FAIL'")
        for number in range(n_waiting, n_trials + n_waiting):
            trial = asker.ask()
            recipe = suggest_recipe(trial, record.space, record.task)
            _insert(connection, number, trial, recipe.to_json(), generator)
    return paths


def _insert(
    connection: sqlite3.Connection,
    number: int,
    trial: optuna.Trial,
    recipe: object,
    generator: np.random.Generator,
) -> None:
    """Write one finished trial; Optuna would take 40 ms for it."""
    began = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None) + timedelta(seconds=2 * number)
    row = connection.execute(
        "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete) "
        "VALUES (?, 1, 'COMPLETE', ?, ?)",
        (number, str(began), str(began + timedelta(seconds=1.5))),
    )
    trial_id = row.lastrowid
    losses = np.sort(generator.uniform(0.05, 2.3, N_ROUNDS))[::-1]
    attributes = {
        "recipe": recipe,
        "slot": number % 2,
        ATTRIBUTE: replace(this_process(), pid=1000 + number % 7).to_json(),
        "accuracy": 0.9,
        "log_loss": round(float(losses[-1]), 6),
        "best_round": N_ROUNDS,
        "epochs": N_ROUNDS,
        "parameters": 50_000,
        "milliseconds": 0.2,
        "seconds": 1.5,
    }
    connection.execute(
        "INSERT INTO trial_values (trial_id, objective, value, value_type) "
        "VALUES (?, 0, ?, 'FINITE')",
        (trial_id, float(losses[-1])),
    )
    connection.executemany(
        "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
        "VALUES (?, ?, ?, ?)",
        [
            (
                trial_id,
                name,
                asked.to_internal_repr(trial.params[name]),
                distribution_to_json(asked),
            )
            for name, asked in trial.distributions.items()
        ],
    )
    connection.executemany(
        "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
        [(trial_id, key, json.dumps(value)) for key, value in attributes.items()],
    )
    connection.executemany(
        "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, "
        "intermediate_value_type) VALUES (?, ?, ?, 'FINITE')",
        [(trial_id, step, float(loss)) for step, loss in enumerate(losses, 1)],
    )


@dataclass(frozen=True, kw_only=True)
class Page:
    """How long a browser waits for a study, in seconds."""

    first: float
    """For the first answer of a server that has just started."""
    first_cpu: float
    """Of these, those that the server computed."""
    again: float
    """For the whole page a second time, as of another visitor."""
    poll: float
    """For what is new."""
    n_bytes: int


@contextmanager
def served(words: Words) -> Iterator[tuple[str, int]]:
    """Start a dashboard; give its address when it listens, and its process."""
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{words[-1]}"
    try:
        for _ in range(600):
            time.sleep(0.1)
            try:
                with urlopen(f"{url}/dashboard", timeout=60) as answer:  # noqa: S310
                    answer.read()
                break
            except OSError:
                continue
        yield url, server.pid
    finally:
        server.terminate()
        server.wait()


def time_page(words: Words, n_trials: int) -> Page:
    """Time what a browser asks of a dashboard."""

    def ask(after: int) -> tuple[float, int]:
        began = time.monotonic()
        with urlopen(f"{url}/api/studies/1?after={after}", timeout=300) as answer:  # noqa: S310
            body = answer.read()
        return time.monotonic() - began, len(body)

    with served(words) as (url, pid):
        before = _cpu_seconds(pid)
        first, n_bytes = ask(0)
        first_cpu = _cpu_seconds(pid) - before
        again, _ = ask(0)
        # The dashboard keeps what it has read: of 500 trials or more for ten seconds.
        time.sleep(5.5 if n_trials < 500 else 11)
        poll = statistics.median(ask(n_trials)[0] for _ in range(3))
    return Page(first=first, first_cpu=first_cpu, again=again, poll=poll, n_bytes=n_bytes)


def _cpu_seconds(pid: int) -> float:
    """Return what a process has computed so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def time_status(paths: StudyPaths, repeats: int) -> tuple[float, float]:
    """Time the command `status` as a user does: the fastest of some repeats, wall and CPU."""
    times = []
    for _ in range(repeats):
        began, before = time.monotonic(), os.times()
        words = ["status", paths.name, "--studies", str(paths.folder.parent)]
        subprocess.run(
            [sys.executable, "-m", "search", *words], stdout=subprocess.DEVNULL, check=True
        )
        used = os.times()
        computed = used.children_user + used.children_system
        computed -= before.children_user + before.children_system
        times.append((time.monotonic() - began, computed))
    return min(times)


def time_trials(who: str, folder: Path, n_trials: int) -> tuple[float, float]:
    """Time the first trial of a process, which reads all others, and the median of some more."""
    times = []
    study = OPENERS[who](folder)
    study.sampler = optuna.samplers.TPESampler(seed=1)
    for _ in range(1 + n_trials):
        began = time.monotonic()
        trial = study.ask()
        for name in ("a", "b", "c", "d", "e", "f", "g", "h"):
            trial.suggest_float(name, 0, 1)
        study.tell(trial, 1.0)
        times.append(time.monotonic() - began)
    return times[0], statistics.median(times[1:])


def copy_in_rollback_mode(paths: StudyPaths, folder: Path) -> Path:
    """Copy a study into a file as Optuna itself makes it; write-ahead mode is part of a file."""
    copy = folder / paths.name
    copy.mkdir(parents=True)
    with (
        closing(sqlite3.connect(paths.database)) as source,
        closing(sqlite3.connect(copy / "study.db")) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
    return copy


@dataclass(frozen=True, kw_only=True)
class Side:
    """All that was measured of one way to store a study."""

    load: Load
    page: Page
    first_trial: float
    trial: float


def measure(flags: argparse.Namespace) -> Outcome:
    """Measure all; see the module."""
    n_trials = 400 if flags.quick else 5000
    seconds, n_more = (4.0, 3) if flags.quick else (15.0, 10)
    n_processes = N_PROCESSES // 2 if flags.quick else N_PROCESSES
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    with TemporaryDirectory() as name:
        root = Path(name)
        loads = {
            who: load(who, root / who, n_processes=n_processes, seconds=seconds) for who in OPENERS
        }
        paths = make_large_study(root / "studies", n_trials)
        folders = {"ours": paths.folder, "theirs": copy_in_rollback_mode(paths, root / "copy")}
        status = time_status(paths, 3)
        port = 18_000 + os.getpid() % 20_000
        dashboard = (sys.executable, "-m", "search", "dashboard", paths.name, "--no-browser")
        commands: dict[str, Words] = {
            "ours": [*dashboard, "--studies", str(root / "studies"), "--port", str(port)],
            "theirs": [
                *(sys.executable, "-c", "from optuna_dashboard._cli import main; main()"),
                *(f"sqlite:///{folders['theirs']}/study.db", "--port", str(port + 1)),
            ],
        }
        sides = {}
        for who, folder in folders.items():
            page = time_page(commands[who], n_trials)
            first, usual = time_trials(who, folder, n_more)
            sides[who] = Side(load=loads[who], page=page, first_trial=first, trial=usual)
    return _outcome(sides["ours"], sides["theirs"], status, n_trials, n_processes)


def _outcome(
    ours: Side, theirs: Side, status: tuple[float, float], n_trials: int, n_processes: int
) -> Outcome:
    def of_load(name: str, form: str, get: Callable[[Load], float]) -> list[str]:
        return [name, *(f"{get(side.load):{form}}" for side in (ours, theirs))]

    def of_study(name: str, get: Callable[[Side], float]) -> list[str]:
        return [name, *(f"{get(side):.2f}" for side in (ours, theirs))]

    return Outcome(
        title=f"{n_processes} processes on one SQLite study, and one of {n_trials:,} trials",
        headings=("", "ours", "Optuna's default"),
        rows=[
            of_load("trials/s", ".1f", lambda load: load.trials_per_second),
            of_load("a call, p99, s", ".2f", lambda load: load.p99),
            of_load("a trial, p99, s", ".1f", lambda load: load.p99_trial),
            of_load("the slowest trial, s", ".1f", lambda load: load.slowest_trial),
            of_load("errors", "d", lambda load: load.n_errors),
            of_load("waiting trials begun twice", "d", lambda load: load.n_twice),
            of_load("finished without all reports", "d", lambda load: load.n_incomplete),
            of_load("for ever running", "d", lambda load: load.n_running),
            of_study(f"first trial after {n_trials:,}, s", lambda side: side.first_trial),
            of_study("the next ones (TPE), s", lambda side: side.trial),
            ["`status`, s", f"{status[0]:.2f}", "-"],
            ["`status`, CPU s", f"{status[1]:.2f}", "-"],
            of_study("dashboard: page, first, s", lambda side: side.page.first),
            of_study("dashboard: page, first, CPU s", lambda side: side.page.first_cpu),
            of_study("dashboard: page, again, s", lambda side: side.page.again),
            of_study("dashboard: poll, s", lambda side: side.page.poll),
        ],
        bars=[
            Bar(name="errors", value=ours.load.n_errors, limit=0, better="lower"),
            Bar(name="begun twice", value=ours.load.n_twice, limit=0, better="lower"),
            Bar(name="reports lost", value=ours.load.n_incomplete, limit=0, better="lower"),
            Bar(name="for ever running", value=ours.load.n_running, limit=0, better="lower"),
            Bar(name="status", value=status[0], limit=1, better="lower", unit=" s"),
            Bar(name="page, first", value=ours.page.first, limit=5, better="lower", unit=" s"),
        ],
        figures={
            "trials": n_trials,
            "status": status,
            "ours": asdict(ours),
            "theirs": asdict(theirs),
        },
        remarks=[
            f"{who}: {count} times {kind}"
            for who, side in (("ours", ours), ("theirs", theirs))
            for kind, count in list(side.load.kinds.items())[:3]
        ],
    )


if __name__ == "__main__":
    run_benchmark("Measure SQLite under many processes, and with many trials.", measure)

"""What more workers, more trials and more time cost a study.

    python benchmarks/scaling.py

* Two workers beside one, one thread each: trials in an hour, and CPU seconds of a trial.
* Asking for a trial, all its parameters included, and telling it, when the study has 10 to 5,000
  trials: as a worker does it that has been there for a while. CPU time, the fastest of seven.
* Memory of 2, 4 and 8 workers on one store of images. RSS counts shared pages once for each
  worker; PSS shares them out, so their sum is what the machine gives. Bar: the store itself is in
  memory once.
* A second start: all files are listed again, and the decoded images found.
* Time outside training and judging: what the study, checkpoints, files and pictures take of a
  trial of 20 seconds. Measured on a shorter one with the same rounds and checkpoints, in wall time
  of its thread, waiting for the disk included.

Images are drawn, 10,000 to train on, or taken from `--data`; the second start has all of `--data`.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from crowd import N_REPORTS, fill_study
from harness import Bar, Outcome, busy_seconds, describe_others, run_benchmark
from optuna.trial import TrialState
from parts import OVERHEAD
from pictures import add_data_flag, make_folder
from workshop import TUTORIAL_POINT, Used, Worker, new_study, run_together, warm_workers

from search.data.folders import read_folder
from search.data.store import prepare_store
from search.samplers import make_pruner, make_sampler
from search.storage import ask, open_study, tell
from search.study import Study
from spaces.space import suggest_recipe

TRIAL_SECONDS = 20.0
N_CHECKPOINTS = 12
"""Of a trial of 20 seconds: one after every second of its 24 rounds, which come faster than one a
second."""
N_REPEATS = 7
LIMIT_MS = 250.0
SECOND_START_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What one trial costs a study of some size, in CPU milliseconds of a worker."""

    n_trials: int
    ask_ms: float
    """With all its parameters."""
    reports_ms: float
    """Twenty-four reports, and as many questions whether to prune."""
    tell_ms: float
    open_ms: float
    """Once for each worker: opening the study and reading all trials."""

    @property
    def whole_ms(self) -> float:
        """Of each trial."""
        return self.ask_ms + self.reports_ms + self.tell_ms


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What some workers hold together, in MB."""

    n_workers: int
    rss: float
    pss: float
    store_pss: float
    """Of the pixels alone."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_data_flag(parser)


def measure(flags: argparse.Namespace) -> Outcome:
    """Measure all four; see the module."""
    sizes = (10, 100, 1000) if flags.quick else (10, 100, 1000, 5000)
    n_images = 1000 if flags.quick else 10_000
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        counts = {"train": n_images, "val": n_images // 5, "test": n_images // 5}
        folder = make_folder(root / "images", counts, source=flags.data)
        n_files, found_in = _time_second_start(flags.data or folder, root / "cache")
        settings: dict[str, Any] = {"data": str(folder), "trials": 10_000, "vary": TUTORIAL_POINT}
        study = new_study(root, name="pace", epochs=1 if flags.quick else 3, **settings)
        short = new_study(
            root, name="short", epochs=N_REPORTS, limit_train=400 if flags.quick else 1000,
            **settings,
        )  # fmt: skip
        crowd = new_study(
            root, name="crowd", data="digits", space="default", pruner="median", trials=10_000
        )
        began = time.perf_counter(), busy_seconds()
        paces = {count: _time_workers(study, count, 1 if flags.quick else 3) for count in (1, 2)}
        used = sum(each.cpu_seconds for uses in paces.values() for each in uses)
        others = (busy_seconds() - began[1] - used) / (time.perf_counter() - began[0])
        with warm_workers(short, 2) as workers:
            parts = run_together(workers[:1], mode="timed with checkpoints").parts_wall
        memories = [
            _weigh_workers(study, count) for count in ((2, 4) if flags.quick else (2, 4, 8))
        ]
        askings = [_time_asking(crowd, size) for size in sizes]
        store_mb = study.record.store.joinpath("images.npy").stat().st_size / 1e6
    return Outcome(
        title="what more workers, more trials and more time cost",
        headings=("", "", ""),
        rows=[
            *_rows_of_paces(paces),
            *_rows_of_askings(askings),
            *_rows_of_memories(memories, store_mb),
            ("second start", f"{n_files:,} files", f"{found_in:.2f} s"),
            *_rows_of_overhead(overhead := _overhead(parts)),
        ],
        bars=[
            Bar(name=f"asking, reporting and telling at {askings[-1].n_trials:,} trials",
                value=askings[-1].whole_ms, limit=LIMIT_MS, better="lower", unit=" ms"),
            Bar(name=f"pixels in memory with {memories[-1].n_workers} workers",
                value=memories[-1].store_pss / store_mb, limit=1.05, better="lower",
                unit=" times the store"),
            Bar(name="second start", value=found_in, limit=SECOND_START_SECONDS, better="lower",
                unit=" s"),
            Bar(name=f"overhead of a trial of {TRIAL_SECONDS:.0f} s",
                value=100 * sum(overhead.values()) / TRIAL_SECONDS, limit=3, better="lower",
                unit=" %"),
        ],
        figures={
            "paces": {count: [vars(use) for use in uses] for count, uses in paces.items()},
            "askings": [asdict(asking) | {"whole_ms": asking.whole_ms} for asking in askings],
            "memories": [asdict(memory) for memory in memories],
            "store_mb": store_mb,
            "second_start_seconds": found_in,
            "overhead_seconds": overhead,
            "cores_taken_by_others": others,
        },
        remarks=[describe_others(others)],
    )  # fmt: skip


def _time_second_start(folder: Path, cache: Path) -> tuple[int, float]:
    """Return the files of a folder, and the seconds in which they are found to be decoded."""
    decoded = prepare_store(read_folder(folder), cache_folder=cache)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        prepare_store(read_folder(folder), cache_folder=cache)
        times.append(time.perf_counter() - began)
    return len(decoded), min(times)


def _time_workers(study: Study, count: int, n_turns: int) -> list[Used]:
    """Run a trial in each of some workers at once, some times over."""
    with warm_workers(study, count) as workers:
        return [run_together(workers) for _ in range(n_turns)]


def _rows_of_paces(paces: dict[int, list[Used]]) -> list[tuple[str, str, str]]:
    rows = []
    for count, uses in paces.items():
        per_hour = 3600 * count / min(used.wall_seconds for used in uses)
        cpu = min(used.cpu_seconds for used in uses) / count
        name = "1 worker" if count == 1 else f"{count} workers"
        rows.append((name, f"{per_hour:,.0f} trials/h", f"{cpu:.2f} CPU s/trial"))
    return rows


def _time_asking(study: Study, n_trials: int) -> Asking:
    """Time the study's part of a trial, some times over; the study grows by as many."""
    fill_study(study, n_trials)
    record = study.record
    began = time.process_time()
    opened = open_study(
        study.paths,
        sampler=make_sampler("tpe", seed=0, space=record.space, task=record.task),
        pruner=make_pruner("median", n_rounds=N_REPORTS),
    )
    opened.get_trials(deepcopy=False)
    times = [time.process_time() - began]
    turns = [_ask_and_tell(opened, study) for _ in range(N_REPEATS)]
    asked, reported, told = (1000 * min(parts) for parts in zip(*turns, strict=True))
    return Asking(
        n_trials=n_trials,
        ask_ms=asked,
        reports_ms=reported,
        tell_ms=told,
        open_ms=1000 * times[0],
    )


def _ask_and_tell(opened: optuna.Study, study: Study) -> tuple[float, float, float]:
    """Return the CPU seconds of asking, of reporting and of telling one trial."""
    moments = [time.process_time()]
    trial = ask(opened, study.record.config.trials)
    if trial is None:
        raise RuntimeError("the study has all its trials already")
    recipe = suggest_recipe(trial, study.record.space, study.record.task)
    trial.set_user_attr("recipe", recipe.to_json())
    trial.set_user_attr("slot", 0)
    moments.append(time.process_time())
    for step in range(1, N_REPORTS + 1):
        trial.report(1.0 / step, step)
        if step < N_REPORTS:
            trial.should_prune()
    moments.append(time.process_time())
    for name in ("accuracy", "log_loss", "best_round", "epochs", "parameters", "milliseconds"):
        trial.set_user_attr(name, 0.5)
    tell(opened, trial, TrialState.COMPLETE, 1.0)
    moments.append(time.process_time())
    asked, reported, told = (end - start for start, end in itertools.pairwise(moments))
    return asked, reported, told


def _rows_of_askings(askings: Sequence[Asking]) -> list[tuple[str, str, str]]:
    return [
        (
            f"trial {asking.n_trials:,}",
            f"ask {asking.ask_ms:.0f}, report {asking.reports_ms:.0f}, tell {asking.tell_ms:.0f}",
            f"{asking.whole_ms:.0f} ms; opening {asking.open_ms:.0f} ms",
        )
        for asking in askings
    ]


def _weigh_workers(study: Study, count: int) -> Memory:
    """Add up the memory of workers that have run a trial each and are still there."""
    with warm_workers(study, count) as workers:
        weighed = [_weigh(worker) for worker in workers]
    rss, pss, store = (sum(column) / 1e3 for column in zip(*weighed, strict=True))
    return Memory(n_workers=count, rss=rss, pss=pss, store_pss=store)


def _weigh(worker: Worker) -> tuple[int, int, int]:
    """Return RSS, PSS, and PSS of the pixels, in kB."""
    rss = pss = store = 0
    in_store = False
    maps = Path(f"/proc/{worker.process.pid}/smaps").read_text(encoding="utf-8")
    for line in maps.splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            in_store = line.endswith("images.npy")
        elif name == "Rss:":
            rss += int(values[0])
        elif name == "Pss:":
            pss += int(values[0])
            store += int(values[0]) * in_store
    return rss, pss, store


def _rows_of_memories(memories: Sequence[Memory], store_mb: float) -> list[tuple[str, str, str]]:
    return [
        (
            f"{memory.n_workers} workers",
            f"RSS {memory.rss:,.0f} MB, PSS {memory.pss:,.0f} MB",
            f"pixels {memory.store_pss:.1f} of {store_mb:.1f} MB",
        )
        for memory in memories
    ]


def _overhead(parts: dict[str, float]) -> dict[str, float]:
    """Return the seconds of each part of the overhead in a trial of 20 seconds."""
    n_written = N_REPORTS  # the timed trial writes a checkpoint after each round
    scale = {"checkpoints": N_CHECKPOINTS / n_written}
    return {part: parts.get(part, 0.0) * scale.get(part, 1.0) for part in OVERHEAD}


def _rows_of_overhead(overhead: dict[str, float]) -> list[tuple[str, str, str]]:
    return [
        (
            f"overhead: {part}",
            f"{1000 * seconds:.0f} ms",
            f"{100 * seconds / TRIAL_SECONDS:.2f} % of {TRIAL_SECONDS:.0f} s",
        )
        for part, seconds in overhead.items()
    ]


if __name__ == "__main__":
    run_benchmark("Measure how a study scales.", measure, add_flags=add_flags)

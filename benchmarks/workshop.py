"""Studies and workers for the speed benchmarks: real ones, run step by step."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import optuna
from parts import Stopwatch, watched_trials

from search.config import StudyConfig
from search.devices import Slot
from search.objective import run_trial
from search.paths import StudyPaths
from search.preparation import make_study
from search.record import read_record
from search.rounds import TrialTime
from search.samplers import make_pruner, make_sampler
from search.storage import ask, open_study, tell
from search.study import Study
from search.supervisor import start_context
from search.workplace import open_workplace

Mode = Literal["plain", "timed", "timed with checkpoints"]

# The network of tutorials, three times convolution and pooling, from 32 to 128 channels.
TUTORIAL_POINT: dict[str, Any] = {
    "families": "plain",
    "stems": "pooled",
    "stem_widths": 32,
    "depth": [2, 2],
    "width": [64, 64],
    "growth": [2.0, 2.0],
    "kernel_sizes": 3,
    "n_convolutions": [1, 1],
    "poolings": "max",
    "norms": "batch",
    "activations": "relu",
    "heads": "average",
    "dropout": [0.1, 0.1],
    "initializations": "he",
    "logit_scales": 1.0,
    "optimizers": "sgd",
    "learning_rate_factor": [0.5, 0.5],
    "momentum": [0.9, 0.9],
    "norm_bias_factors": 1.0,
    "schedules": "cosine",
    "warmup": [0.1, 0.1],
    "batch_sizes": 128,
    "label_smoothing": [0.1, 0.1],
    "averagings": "none",
    "flips": "random",
    "crop": [2 / 32, 2 / 32],
    "rotation": [0.0, 0.0],
    "scale": [0.0, 0.0],
    "shear": [0.0, 0.0],
    "jitter": [0.0, 0.0],
    "erasing": [0.0, 0.0],
    "policies": "none",
    "mixings": "none",
    "early_size": [1.0, 1.0],
}
"""One network and one way to train it; the weight decay alone is left to the sampler."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """What one trial, or several at once, used up."""

    wall_seconds: float
    cpu_seconds: float
    parts_cpu: dict[str, float]
    """Empty where the parts were not timed."""
    parts_wall: dict[str, float]


def new_study(studies: Path, **settings: object) -> Study:
    """Make a study, whose trials nobody runs yet."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = StudyConfig.model_validate({"devices": "cpu", **settings})
    paths = StudyPaths(studies / config.study_name)
    paths.folder.mkdir(parents=True)
    return Study(paths=paths, record=make_study(paths, config, studies, None))


class Worker:
    """A worker process that runs one trial when it is told to."""

    def __init__(self, study: Study, slot: Slot) -> None:
        context = start_context()
        self.pipe, other = context.Pipe()
        self.process = context.Process(  # type: ignore[attr-defined]
            target=_work, args=(study.paths.folder, slot, other), daemon=True
        )
        self.process.start()
        other.close()

    def begin_trial(self, mode: Mode) -> None:
        """Let the worker begin a trial; `finish` waits for its end."""
        self.pipe.send(mode)

    def finish(self) -> Used:
        """Wait for the end of the trial."""
        used: Used = self.pipe.recv()
        return used

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join()


@contextmanager
def warm_workers(study: Study, count: int) -> Iterator[list[Worker]]:
    """Give worker processes that have run a trial each, with one thread each."""
    slots = [Slot(number=number, device="cpu", n_threads=1) for number in range(count)]
    os.environ.update(slots[0].environment)  # the fork server is started with it
    workers = [Worker(study, slot) for slot in slots]
    try:
        run_together(workers)
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def run_together(workers: list[Worker], *, mode: Mode = "plain") -> Used:
    """Let each worker run a trial at the same time.

    Returns:
        Wall time until the last one is done; all else as the sum over the workers.
    """
    began = time.perf_counter()
    for worker in workers:
        worker.begin_trial(mode)
    each = [worker.finish() for worker in workers]
    return Used(
        wall_seconds=time.perf_counter() - began,
        cpu_seconds=sum(used.cpu_seconds for used in each),
        parts_cpu=_sum([used.parts_cpu for used in each]),
        parts_wall=_sum([used.parts_wall for used in each]),
    )


def _sum(each: list[dict[str, float]]) -> dict[str, float]:
    return {part: sum(parts.get(part, 0.0) for parts in each) for part in each[0]}


def _work(folder: Path, slot: Slot, pipe: Connection) -> None:
    """Run a trial, as `search.loop` does, for each message that comes."""
    os.environ.update(slot.environment)
    paths = StudyPaths(folder)
    record = read_record(open_study(paths))
    config = record.config
    study = open_study(
        paths,
        sampler=make_sampler(
            config.sampler, seed=config.seed, space=record.space, task=record.task
        ),
        pruner=make_pruner(config.pruner, n_rounds=record.plan.n_rounds, rungs=record.plan.rungs),
    )
    place = open_workplace(paths, record, slot, lambda: False)

    def run_one(watch: Stopwatch) -> None:
        with watch.running("study"):
            trial = ask(study, config.trials)
        if trial is None:
            raise RuntimeError(f"the study has its {config.trials} trials already")
        with watch.running("rest"):
            outcome = run_trial(trial, place, TrialTime(seconds=None, deadline=None))
        with watch.running("study"):
            tell(study, trial, outcome.state, outcome.value)
        place.paths.trial(trial.number).checkpoint.unlink(missing_ok=True)

    while True:
        try:
            mode: Mode = pipe.recv()
        except EOFError:
            return
        watch = Stopwatch()
        began = time.perf_counter(), time.process_time()
        if mode == "plain":
            run_one(watch)
        else:
            with watched_trials(watch, checkpoints=mode == "timed with checkpoints"):
                run_one(watch)
        pipe.send(
            Used(
                wall_seconds=time.perf_counter() - began[0],
                cpu_seconds=time.process_time() - began[1],
                parts_cpu={} if mode == "plain" else dict(watch.cpu),
                parts_wall={} if mode == "plain" else dict(watch.wall),
            )
        )

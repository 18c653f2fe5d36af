"""How much faster a whole trial is here than in a tutorial's loop.

    python benchmarks/throughput.py --data CIFAR10_FOLDER

Both sides train the same convolutions on the same files for the same number of epochs and batches,
and evaluate them. A tutorial puts pooling after norm and activation; here it comes first, so that
both work on a quarter of the pixels. What that alone is worth shows the tutorial's loop with the
order of here. The tutorial's loop (`tutorial.py`) has both cores to itself, in a process that is
warm: its imports are not counted. On the other side two warm workers run a trial each at the same
time, by the ordinary path: ask, train, judge each round, predict for three roles, write, tell. The
sides take turns; the best of each counts.

Wall time is what a user waits, and needs a machine with nothing else to do: two threads that wait
for each other on busy cores spin, and would make the tutorial look worse than it is. So it also
trains in one thread, and the CPU seconds of that, its loading processes included, are compared
with those of a trial: a ratio that is too low (two cores never share work without loss) but holds
whatever else runs. The parts of a trial are timed in a run of their own, in CPU seconds.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import torch
from harness import Bar, Outcome, busy_seconds, describe_others, run_benchmark
from optuna.trial import FixedTrial
from parts import PARTS
from pictures import add_data_flag, make_folder
from torch import nn
from tutorial import cpu_seconds, plain_network, train_tutorial
from workshop import TUTORIAL_POINT, Used, new_study, run_together, warm_workers

from search.study import Study
from spaces.networks.builders import build_network
from spaces.space import suggest_recipe

N_WORKERS = 2
BATCH_SIZE = 128
BOTH = "tutorial's loop, both cores"
POOLED_FIRST = "  the same, pooling first"
ONE = "tutorial's loop, one thread"
OURS = "two warm workers, per trial"
SIDES = (BOTH, POOLED_FIRST, ONE, OURS)
Turn: TypeAlias = tuple[int, int, bool]
"""Of the tutorial: epochs, threads, and whether pooling comes first."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_data_flag(parser)
    parser.add_argument("--repeats", type=int, help="turns of each side")


def measure(flags: argparse.Namespace) -> Outcome:
    """Let both sides take turns; see the module."""
    n_images, n_epochs, n_repeats = (1000, 2, 1) if flags.quick else (10_000, 3, 3)
    counts = {"train": n_images, "val": n_images // 5, "test": n_images // 5}
    sides: dict[str, list[Used]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = make_folder(Path(name) / "images", counts, source=flags.data)
        study = new_study(
            Path(name) / "studies",
            data=str(folder),
            epochs=n_epochs,
            trials=1000,
            pruner="none",
            vary=TUTORIAL_POINT,
        )
        with _tutorial(folder, study) as pipe, warm_workers(study, N_WORKERS) as workers:
            began = time.perf_counter(), busy_seconds()
            for _ in range(flags.repeats or n_repeats):
                for side, n_threads in ((BOTH, N_WORKERS), (POOLED_FIRST, N_WORKERS), (ONE, 1)):
                    turn: Turn = (n_epochs, n_threads, side == POOLED_FIRST)
                    pipe.send(turn)
                    sides[side].append(pipe.recv())
                sides[OURS].append(run_together(workers))
            used = sum(each.cpu_seconds for side in sides.values() for each in side)
            others = (busy_seconds() - began[1] - used) / (time.perf_counter() - began[0])
            parts = run_together(workers[:1], mode="timed").parts_cpu
    return _outcome(sides, parts, others, counts, n_epochs)


def _outcome(
    sides: dict[str, list[Used]],
    parts: dict[str, float],
    others: float,
    counts: dict[str, int],
    n_epochs: int,
) -> Outcome:
    wall = {side: min(used.wall_seconds for used in uses) for side, uses in sides.items()}
    cpu = {side: min(used.cpu_seconds for used in uses) for side, uses in sides.items()}
    for best in (wall, cpu):
        best[OURS] /= N_WORKERS
    faster = {side: wall[side] / wall[OURS] for side in (BOTH, POOLED_FIRST)}
    cheaper = {side: cpu[side] / cpu[OURS] for side in (BOTH, ONE)}
    whole = sum(parts.values())
    per_trial = n_epochs * counts["val"] // 2 + counts["val"] + counts["test"]
    return Outcome(
        title=f"one trial: {counts['train']:,} images, {n_epochs} epochs, evaluation",
        headings=("", "wall s", "CPU s", "share"),
        rows=[
            *((side, f"{wall[side]:.2f}", f"{cpu[side]:.2f}", "") for side in SIDES),
            *(
                (f"  {part}", "", f"{parts[part]:.3f}", f"{100 * parts[part] / whole:.1f} %")
                for part in PARTS
            ),
        ],
        bars=[
            Bar(name="faster than with both cores", value=faster[BOTH], limit=5, better="higher",
                unit=" times"),
            Bar(name="CPU of one thread that is saved", value=cheaper[ONE], limit=3,
                better="higher", unit=" times"),
        ],
        figures={
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "faster": faster,
            "cheaper": cheaper,
            "parts_cpu_seconds": parts,
            "cores_taken_by_others": others,
        },
        remarks=[
            f"beside the tutorial's loop with pooling first: {faster[POOLED_FIRST]:.2f} times",
            f"the tutorial evaluates {counts['test']:,} images once, a trial {per_trial:,}",
            describe_others(others),
        ],
    )  # fmt: skip


@contextmanager
def _tutorial(folder: Path, study: Study) -> Iterator[Connection]:
    """Give a pipe to a process that trains as the tutorial does, warm from a short training."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    threads = {name: os.environ.pop(name, None) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    process = context.Process(target=_run_tutorials, args=(folder, study, other))
    process.start()
    other.close()
    os.environ.update({name: value for name, value in threads.items() if value is not None})
    try:
        yield pipe
    finally:
        pipe.close()
        process.join()


def _run_tutorials(folder: Path, study: Study, pipe: Connection) -> None:
    """Train and evaluate for each number of epochs that comes."""
    # A spawned process would spawn its loaders too, each with imports of its own; a user's script
    # forks them.
    multiprocessing.set_start_method("fork", force=True)
    point = FixedTrial({"optimizer.weight_decay_factor": 1.0})
    task = study.record.task
    architecture = suggest_recipe(point, study.record.space, task).architecture
    _check_same(build_network(architecture, task), plain_network(task.n_classes))
    torch.optim.SGD(torch.nn.Linear(1, 1).parameters()).step()  # imports what a first step does
    while True:
        try:
            n_epochs, n_threads, pools_first = pipe.recv()
        except EOFError:
            return
        torch.set_num_threads(n_threads)
        began = time.perf_counter(), cpu_seconds()
        train_tutorial(
            build_network(architecture, task) if pools_first else plain_network(task.n_classes),
            folder,
            n_epochs=n_epochs,
            batch_size=BATCH_SIZE,
            evaluate_every=n_epochs,
            on_epoch=lambda _: None,
        )
        pipe.send(
            Used(
                wall_seconds=time.perf_counter() - began[0],
                cpu_seconds=cpu_seconds() - began[1],
                parts_cpu={},
                parts_wall={},
            )
        )


def _check_same(ours: nn.Module, theirs: nn.Module) -> None:
    """Refuse to compare networks of different convolutions."""
    shapes, others = (
        [tuple(weight.shape) for weight in network.parameters() if weight.dim() > 1]
        for network in (ours, theirs)
    )
    if shapes != others:
        raise RuntimeError(f"the tutorial trains {others}, here it is {shapes}")


if __name__ == "__main__":
    run_benchmark("Time a whole trial beside a tutorial's loop.", measure, add_flags=add_flags)

"""How long it takes to reach an accuracy: the space's own first trials, and a tutorial's loop.

    python benchmarks/time_to_accuracy.py --data CIFAR10_FOLDER

Our side trains good first configurations (`spaces/known.py`) by the ordinary training path on all
training images, each to the end of its own annealed schedule; a longer one reaches more. For each
accuracy on the test images the cheapest training that reaches it counts. The tutorial's loop has
one long training, and is asked after each epoch.

Seconds are those of two cores: the CPU time of all processes that take part, halved. So they do
not depend on what else the machine does, as wall time does, which stands beside them. Both sides
compute in one thread; a study uses its cores by as many trials at once. Starting the network,
whitening included, counts; decoding the files, once for all trainings of all studies, is told
apart; evaluation does not count on either side.

`--quick` is a short training of each side on a few images, drawn where no folder is given.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from direct import predict, rows_of, training_images
from harness import Bar, Outcome, busy_seconds, describe_others, run_benchmark
from pictures import add_data_flag, check_data, make_folder
from tutorial import TutorialEpoch, cpu_seconds, plain_network, train_tutorial

from ensembles.metrics import accuracy
from search.data.folders import read_folder
from search.data.store import ImageStore, prepare_store
from search.process import choose_autocast_dtype, prepare_process
from search.training import n_steps_per_epoch, train
from spaces.known import known_recipes
from spaces.recipe import Recipe
from spaces.space import SPACES

N_CORES = 2
TARGETS = (0.70, 0.80, 0.85, 0.88, 0.90)
LIMITS = {0.772: 22.0, 0.80: 29.0, 0.826: 57.0, 0.878: 241.0}
"""Seconds of both cores in which a prototype of this training got there."""
TUTORIAL_EPOCHS = 14
TUTORIAL_BATCH = 128


@dataclass(frozen=True)
class Planned:
    """One training of our side."""

    place: int
    """Its configuration's, among the known ones."""
    n_epochs: int
    early_size: float | None = None
    """In the place of the configuration's own."""

    def __str__(self) -> str:
        """Return the plan as `--plan` takes it."""
        early_size = "" if self.early_size is None else f":{self.early_size:g}"
        return f"{self.place}:{self.n_epochs}{early_size}"


# Some have larger images in their early steps than their configuration, to show what small ones
# are worth.
PLAN = (
    *(Planned(9, n_epochs) for n_epochs in (1, 2, 4)),
    Planned(9, 4, 1.0),
    Planned(9, 8),
    Planned(7, 4, 1.0),
    *(Planned(7, n_epochs, 0.75) for n_epochs in (5, 10)),
    Planned(7, 22),
    Planned(7, 40, 0.75),
)
QUICK_PLAN = (Planned(0, 3),)


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What one training reached, and what it took."""

    name: str
    n_epochs: int
    accuracy: float
    seconds: float
    """Of both cores."""
    wall_seconds: float


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_data_flag(parser)
    parser.add_argument(
        "--plan",
        type=_plan,
        help="trainings of our side, as CONFIGURATION:EPOCHS or CONFIGURATION:EPOCHS:EARLY_SIZE, "
        "with commas between; default: " + ",".join(map(str, PLAN)),
    )
    parser.add_argument("--tutorial-epochs", type=int, help="of the tutorial's loop")


def measure(flags: argparse.Namespace) -> Outcome:
    """Train both sides; see the module."""
    prepare_process(1)
    check_data(flags)
    with tempfile.TemporaryDirectory() as name:
        folder = flags.data
        if flags.quick:
            counts = {"train": 4000, "test": 1000}
            folder = make_folder(Path(name) / "images", counts, source=flags.data)
        began = time.perf_counter(), cpu_seconds(), busy_seconds()
        store = prepare_store(read_folder(folder), cache_folder=Path(name) / "cache")
        decoding = (cpu_seconds() - began[1]) / N_CORES
        tutorial = _train_tutorial(
            folder, flags.tutorial_epochs or (1 if flags.quick else TUTORIAL_EPOCHS), store
        )
        plan = flags.plan or (QUICK_PLAN if flags.quick else PLAN)
        ours = [_train(store, planned) for planned in plan]
        used = cpu_seconds() - began[1]
        others = (busy_seconds() - began[2] - used) / (time.perf_counter() - began[0])
    bars = _quick_bars(ours, tutorial) if flags.quick else _bars(ours, tutorial)
    return Outcome(
        title=f"{len(rows_of(store, 'train')):,} images, one thread",
        headings=("", "accuracy", "s of both cores", "wall s"),
        rows=[
            *(
                (f"{each.name}, {each.n_epochs} epochs", f"{100 * each.accuracy:.2f} %",
                 f"{each.seconds:.1f}", f"{each.wall_seconds:.1f}")
                for each in (*ours, *tutorial)
            ),
            *(
                (f"to {100 * target:.0f} %", "", _shown(ours, target) + " against",
                 _shown(tutorial, target))
                for target in TARGETS
            ),
        ],
        bars=bars,
        figures={
            "ours": [asdict(each) for each in ours],
            "tutorial": [asdict(each) for each in tutorial],
            "decoding_seconds": decoding,
            "cores_taken_by_others": others,
        },
        remarks=[f"decoding all files took {decoding:.1f} s of both cores, once",
                 describe_others(others)],
    )  # fmt: skip


def seconds_to(trainings: Sequence[Reached], target: float) -> float:
    """Return the seconds of the cheapest training that reached an accuracy; infinite if none."""
    return min((each.seconds for each in trainings if each.accuracy >= target), default=torch.inf)


def _shown(trainings: Sequence[Reached], target: float) -> str:
    seconds = seconds_to(trainings, target)
    if seconds < torch.inf:
        return f"{seconds:.1f}"
    return f"over {max(each.seconds for each in trainings):.0f}"


def _bars(ours: Sequence[Reached], tutorial: Sequence[Reached]) -> list[Bar]:
    # A tutorial that never gets there has taken at least as long as it was given.
    longest = max(each.seconds for each in tutorial)
    sooner = min(seconds_to(tutorial, 0.70), longest) / seconds_to(ours, 0.70)
    return [
        Bar(name="70 % sooner than the tutorial", value=sooner, limit=15, better="higher",
            unit=" times"),
        *(
            Bar(name=f"{100 * target:g} %", value=seconds_to(ours, target), limit=limit,
                better="lower", unit=" s of both cores")
            for target, limit in LIMITS.items()
        ),
    ]  # fmt: skip


def _quick_bars(ours: Sequence[Reached], tutorial: Sequence[Reached]) -> list[Bar]:
    """Hold our best short training to the tutorial's end: more, in less time."""
    best = max(ours, key=lambda each: each.accuracy)
    return [
        Bar(name="accuracy above the tutorial's", value=100 * best.accuracy,
            limit=100 * tutorial[-1].accuracy, better="higher", unit=" %"),
        Bar(name="time, of the tutorial's", value=best.seconds / tutorial[-1].seconds, limit=1,
            better="lower"),
    ]  # fmt: skip


def _train(store: ImageStore, planned: Planned) -> Reached:
    """Train one known configuration to the end of its schedule, and test it once."""
    recipe = known_recipes(SPACES["default"], store.task)[planned.place]
    if planned.early_size is not None:
        augmentation = replace(recipe.augmentation, early_size=planned.early_size)
        recipe = replace(recipe, augmentation=augmentation)
    rows, tested = rows_of(store, "train"), rows_of(store, "test")
    images = training_images(store, rows)
    dtype = choose_autocast_dtype(torch.device("cpu"))
    began = time.perf_counter(), cpu_seconds()
    n_steps = planned.n_epochs * n_steps_per_epoch(len(rows), recipe.optimizer.batch_size)
    (last,) = train(
        recipe, store.task, images, n_steps=n_steps, n_rounds=1, seed=0, autocast_dtype=dtype
    )
    wall, cpu = time.perf_counter() - began[0], cpu_seconds() - began[1]
    predicted = predict(last.network, store, tested, images, dtype)
    return _told(
        Reached(
            name=f"known {planned.place}, {_shape(recipe)}",
            n_epochs=planned.n_epochs,
            accuracy=accuracy(predicted, store.labels[tested.numpy()]),
            seconds=cpu / N_CORES,
            wall_seconds=wall,
        )
    )


def _shape(recipe: Recipe) -> str:
    widths = "-".join(str(stage.width) for stage in recipe.architecture.stages)
    return f"{widths}, from {recipe.augmentation.early_size:.0%} of the side"


def _told(reached: Reached) -> Reached:
    """Say what a training has reached, since the whole takes long."""
    print(
        f"{reached.name}, {reached.n_epochs} epochs: {100 * reached.accuracy:.2f} % after "
        f"{reached.seconds:.1f} s of both cores",
        file=sys.stderr,
    )
    return reached


def _train_tutorial(folder: Path, n_epochs: int, store: ImageStore) -> list[Reached]:
    reached: list[Reached] = []

    def note(epoch: TutorialEpoch) -> None:
        reached.append(
            _told(
                Reached(
                    name="tutorial's loop",
                    n_epochs=epoch.number,
                    accuracy=epoch.accuracy or 0.0,
                    seconds=epoch.cpu_seconds / N_CORES,
                    wall_seconds=epoch.wall_seconds,
                )
            )
        )

    train_tutorial(
        plain_network(store.task.n_classes),
        folder,
        n_epochs=n_epochs,
        batch_size=TUTORIAL_BATCH,
        evaluate_every=1,
        on_epoch=note,
    )
    return reached


def _plan(text: str) -> list[Planned]:
    """Read `2:4,7:15:0.75`."""
    parts = [part.split(":") for part in text.split(",")]
    return [Planned(int(place), int(n), *map(float, early)) for place, n, *early in parts]


if __name__ == "__main__":
    run_benchmark("Time trainings to an accuracy.", measure, add_flags=add_flags)

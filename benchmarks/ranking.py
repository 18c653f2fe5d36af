"""How well cheap looks at configurations rank them: which rungs are worth having.

    python benchmarks/ranking.py --data CIFAR10_FOLDER

Random points of the default space, all with averaged weights and whole images, have one long
schedule, which is cut after a quarter and after half of it, and with complete schedules of those
lengths. A look is log-loss after one fitted temperature, on held-out images, by the averaged
weights and, in the long schedule, by those that are trained too. The reference is the same at the
end of the long schedule, the mean of two seeds; the looks have the first of them.

Spearman's correlation with the reference says how well a look ranks; the interval is a bootstrap
over configurations. "Lost" is how much worse the look's favourite is than the best one, in the
reference. A configuration that diverged comes last.

`--quick` is a few configurations on a few images, drawn where no folder is given, and has no bars.
"""

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import optuna
import torch
from direct import predict, rows_of, training_images
from harness import Bar, Outcome, run_benchmark
from jaxtyping import Float
from optuna.samplers import RandomSampler
from pictures import add_data_flag, check_data, make_folder
from scipy.stats import rankdata, spearmanr
from torch import nn

from search.data.folders import read_folder
from search.data.store import ImageStore, prepare_store
from search.errors import ConfigError
from search.judging import score
from search.process import choose_autocast_dtype, prepare_process
from search.training import Diverged, n_steps_per_epoch, train
from spaces.recipe import Recipe
from spaces.space import Space, suggest_recipe

SPACE = Space(averagings=("ema", "lookahead"), batch_sizes=(128, 256, 512), early_size=(1.0, 1.0))
N_ROUNDS = 4
N_RESAMPLES = 1000
LATE = 0.9
REFERENCE = "long, at its end"
Kind = Literal["averaged", "trained"]
KINDS: Sequence[Kind] = ("averaged", "trained")
Losses: TypeAlias = dict[str, float]
"""Log-loss of one configuration by look."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_data_flag(parser)
    parser.add_argument("--configurations", type=int, help="how many (default: 20)")
    parser.add_argument("--epochs", type=int, help="of the long schedule (default: 8)")
    parser.add_argument("--images", type=int, help="to train on (default: 5000)")


def measure(flags: argparse.Namespace) -> Outcome:
    """Train all configurations every way; see the module."""
    prepare_process(1)
    check_data(flags)
    n_configurations = flags.configurations or (2 if flags.quick else 20)
    n_epochs = flags.epochs or 8
    n_images = flags.images or (400 if flags.quick else 5000)
    # A short schedule must have a few steps, and few images make many only as small batches.
    space = replace(SPACE, batch_sizes=(128,)) if flags.quick else SPACE
    with tempfile.TemporaryDirectory() as name:
        counts = {"train": n_images, "test": 200 if flags.quick else 2000}
        folder = make_folder(Path(name) / "images", counts, source=flags.data)
        store = prepare_store(read_folder(folder), cache_folder=Path(name) / "cache")
        bench = _Bench(store)
        found = [
            bench.look_at(recipe, n_epochs)
            for recipe in _random_recipes(space, store, n_configurations)
        ]
    looks = {look: np.array([losses[look] for losses in found]) for look in found[0]}
    reference = looks.pop(REFERENCE)
    ranks = {look: _spearman(losses, reference) for look, losses in looks.items()}
    return Outcome(
        title=f"{n_configurations} configurations, {n_images:,} images, {n_epochs} epochs",
        headings=("look", "Spearman", "10 to 90 %", "lost, nats"),
        rows=[
            (look, f"{ranks[look]:.2f}", _interval(losses, reference),
             f"{reference[losses.argmin()] - reference.min():.3f}")
            for look, losses in looks.items()
        ],
        bars=[] if flags.quick else _bars(ranks),
        figures={
            "looks": {look: losses.tolist() for look, losses in looks.items()},
            "reference": reference.tolist(),
            "spearman": ranks,
        },
        remarks=[f"diverged: {np.isinf(reference).sum()}"],
    )  # fmt: skip


def _random_recipes(space: Space, store: ImageStore, count: int) -> list[Recipe]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    return [suggest_recipe(study.ask(), space, store.task) for _ in range(count)]


class _Bench:
    """Trains configurations on the `train` images of a store, and judges them on `test`."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._images = training_images(store, rows_of(store, "train"))
        self._rows = rows_of(store, "test")
        self._dtype = choose_autocast_dtype(torch.device("cpu"))

    def look_at(self, recipe: Recipe, n_epochs: int) -> Losses:
        """Train one configuration in every way, and return what each look says."""
        n_images = len(self._images.rows)
        n_steps = n_epochs * n_steps_per_epoch(n_images, recipe.optimizer.batch_size)
        if n_steps // 4 < N_ROUNDS:
            raise ConfigError(
                f"--epochs, --images: a quarter of {n_steps} steps is too short to look at; "
                f"expected {4 * N_ROUNDS} steps or more."
            )
        long, again = (self._train(recipe, n_steps, seed) for seed in range(2))
        quarter, half = (self._train(recipe, n_steps // part, 0) for part in (4, 2))
        found = {
            "cut after 1/4": long[1, "averaged"],
            "cut after 1/4, not averaged": long[1, "trained"],
            "complete, 1/4 as long": quarter[N_ROUNDS, "averaged"],
            "cut after 1/2": long[2, "averaged"],
            "cut after 1/2, not averaged": long[2, "trained"],
            "complete, 1/2 as long": half[N_ROUNDS, "averaged"],
            REFERENCE: (long[N_ROUNDS, "averaged"] + again[N_ROUNDS, "averaged"]) / 2,
        }
        print(f"log-loss {found[REFERENCE]:.4f}", file=sys.stderr)
        return found

    def _train(self, recipe: Recipe, n_steps: int, seed: int) -> dict[tuple[int, Kind], float]:
        """Return the log-loss after each quarter of a schedule, by kind of weights."""
        losses = dict.fromkeys(itertools.product(range(1, N_ROUNDS + 1), KINDS), np.inf)
        rounds = train(
            recipe,
            self._store.task,
            self._images,
            n_steps=n_steps,
            n_rounds=N_ROUNDS,
            seed=seed,
            autocast_dtype=self._dtype,
        )
        with contextlib.suppress(Diverged):  # what is not reached stays infinite
            for each in rounds:
                losses[each.number, "averaged"] = self._judge(each.network)
                losses[each.number, "trained"] = self._judge(each.unaveraged or each.network)
        return losses

    def _judge(self, network: nn.Module) -> float:
        predicted = predict(network, self._store, self._rows, self._images, self._dtype)
        if not np.isfinite(predicted).all():
            return np.inf
        return score(predicted, self._store.labels[self._rows.numpy()])["log_loss"]


def _spearman(losses: Float[np.ndarray, " n"], reference: Float[np.ndarray, " n"]) -> float:
    """Return the correlation of ranks; 0 where all of one side are equal."""
    if np.ptp(rankdata(losses)) == 0 or np.ptp(rankdata(reference)) == 0:
        return 0.0
    return float(spearmanr(rankdata(losses), rankdata(reference)).statistic)


def _interval(losses: Float[np.ndarray, " n"], reference: Float[np.ndarray, " n"]) -> str:
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(losses), size=(N_RESAMPLES, len(losses)))
    ranks = [_spearman(losses[rows], reference[rows]) for rows in drawn]
    low, high = np.quantile(ranks, (0.1, 0.9))
    return f"{low:.2f} to {high:.2f}"


def _bars(ranks: Mapping[str, float]) -> list[Bar]:
    return [
        Bar(name="complete, 1/4 as long: Spearman above that of the cut there",
            value=ranks["complete, 1/4 as long"] - ranks["cut after 1/4"], limit=0,
            better="higher"),
        Bar(name="cut after 1/2: Spearman", value=ranks["cut after 1/2"], limit=LATE,
            better="higher"),
    ]  # fmt: skip


if __name__ == "__main__":
    run_benchmark("Compare cheap looks at configurations.", measure, add_flags=add_flags)

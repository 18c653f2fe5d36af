"""How well cheap looks at configurations rank them: which rungs are worth having.

    python benchmarks/ranking.py --data CIFAR10_FOLDER

Random points of the default space, all with averaged weights and whole images, train by one long
schedule, which is cut after a quarter and after half of it; by complete schedules of those
lengths; by a quarter of the steps on a quarter of the images; and by `wsd`, whose rate is constant
until a short decay, so that a training can go on from before the decay of a look at a quarter. A
look is log-loss after one fitted temperature, on held-out images, by the averaged weights and, in
the long schedule, by those that are trained too. The reference is the same at the end of the long
schedule, the mean of two seeds; the looks have the first of them.

Spearman's correlation with the reference says how well a look ranks; the interval is a bootstrap
over configurations. "Lost" is how much worse the look's favourite is than the best one, in the
reference. A configuration that diverged comes last.

Looks have a price, which the last rows tell: how far a training that takes as many steps in all
as the long schedule ends above its log-loss, if complete schedules of a quarter and of half are
parts of it, and if two decays branch off from `wsd` at these places. Mean and standard error over
the configurations that did not diverge.

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
from search.training import Diverged, TrainingImages, n_steps_per_epoch, train
from spaces.optimization import WSD_DECAY
from spaces.recipe import Recipe
from spaces.space import Space, suggest_recipe

SPACE = Space(averagings=("ema", "lookahead"), batch_sizes=(128, 256), early_size=(1.0, 1.0))
N_ROUNDS = 4
RUNGS = (1, 2)
WSD_WARMUP = 0.1
"""Of a schedule `wsd` of a quarter; a longer one warms up for as many steps."""
WSD_SHARE = 1 - WSD_DECAY * sum(rung / N_ROUNDS for rung in RUNGS)
"""Of the steps of a long schedule, what is left for `wsd` when its looks have decayed."""
N_RESAMPLES = 1000
LATE = 0.9
REFERENCE, AGAIN = "long", "long, with another seed"
CUT, COMPLETE, LATE_CUT = "cut after 1/4", "complete, 1/4 as long", "cut after 1/2"
AFTER_RUNGS, WSD_LONG = "its end, after 1/4 and 1/2", "the end of wsd, with two looks"
ENDS = (AFTER_RUNGS, WSD_LONG)
Kind = Literal["averaged", "trained"]
KINDS: Sequence[Kind] = ("averaged", "trained")
Losses: TypeAlias = dict[str, float]
"""Log-loss of one configuration by look."""
Array: TypeAlias = Float[np.ndarray, " configurations"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_data_flag(parser)
    parser.add_argument("--configurations", type=int, help="how many (default: 10)")
    parser.add_argument("--epochs", type=int, help="of the long schedule (default: 6)")
    parser.add_argument("--images", type=int, help="to train on (default: 2000)")


def measure(flags: argparse.Namespace) -> Outcome:
    """Train all configurations every way; see the module."""
    prepare_process(1)
    check_data(flags)
    n_configurations = flags.configurations or (2 if flags.quick else 10)
    n_epochs = flags.epochs or 6
    n_images = flags.images or (400 if flags.quick else 2000)
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
    ends = {end: looks.pop(end) for end in (REFERENCE, *ENDS)}
    reference = (ends[REFERENCE] + looks.pop(AGAIN)) / 2
    ranks = {look: _spearman(losses, reference) for look, losses in looks.items()}
    prices = {end: _price(ends[end] - ends[REFERENCE]) for end in ENDS}
    return Outcome(
        title=f"{n_configurations} configurations, {n_images:,} images, {n_epochs} epochs",
        headings=("look", "Spearman", "10 to 90 %", "lost, nats"),
        rows=[
            *(
                (look, f"{ranks[look]:.2f}", _interval(_resampled(losses, reference), ".2f"),
                 f"{reference[losses.argmin()] - reference.min():.3f}")
                for look, losses in looks.items()
            ),
            *((end, "", "", f"{price:+.3f} ± {error:.3f}")
              for end, (price, error) in prices.items()),
        ],
        bars=[] if flags.quick else _bars(looks, ranks, reference),
        figures={
            "looks": {look: losses.tolist() for look, losses in looks.items()},
            "ends": {end: losses.tolist() for end, losses in ends.items()},
            "reference": reference.tolist(),
            "spearman": ranks,
            "prices": prices,
        },
        remarks=[
            f"diverged: {np.isinf(reference).sum()}",
            "the complete look's Spearman above the cut's, 10 to 90 %: "
            + _interval(_gaps(looks, reference), "+.2f"),
        ],
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
        rows = self._images.rows
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        self._few = replace(self._images, rows=rows[order[: len(rows) // 4]])
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
        quarter, half = (self._train(recipe, n_steps // part) for part in (4, 2))
        few = self._train(recipe, n_steps // 4, images=self._few)
        rungs = self._train(recipe, n_steps, rungs=RUNGS)
        wsd_look = self._train(_wsd(recipe, WSD_WARMUP), n_steps // 4)
        wsd = self._train(_wsd(recipe, WSD_WARMUP / 4 / WSD_SHARE), round(WSD_SHARE * n_steps))
        print(f"log-loss {long[N_ROUNDS, 'averaged']:.4f}", file=sys.stderr)
        return {
            CUT: long[1, "averaged"],
            f"{CUT}, not averaged": long[1, "trained"],
            COMPLETE: quarter[N_ROUNDS, "averaged"],
            "wsd, 1/4 as long": wsd_look[N_ROUNDS, "averaged"],
            "1/4 of the images": few[N_ROUNDS, "averaged"],
            LATE_CUT: long[2, "averaged"],
            f"{LATE_CUT}, not averaged": long[2, "trained"],
            "complete, 1/2 as long": half[N_ROUNDS, "averaged"],
            REFERENCE: long[N_ROUNDS, "averaged"],
            AGAIN: again[N_ROUNDS, "averaged"],
            AFTER_RUNGS: rungs[N_ROUNDS, "averaged"],
            WSD_LONG: wsd[N_ROUNDS, "averaged"],
        }

    def _train(
        self,
        recipe: Recipe,
        n_steps: int,
        seed: int = 0,
        *,
        rungs: Sequence[int] = (),
        images: TrainingImages | None = None,
    ) -> dict[tuple[int, Kind], float]:
        """Return the log-loss after each quarter of a schedule, by kind of weights."""
        losses = dict.fromkeys(itertools.product(range(1, N_ROUNDS + 1), KINDS), np.inf)
        rounds = train(
            recipe,
            self._store.task,
            images or self._images,
            n_steps=n_steps,
            n_rounds=N_ROUNDS,
            seed=seed,
            autocast_dtype=self._dtype,
            rungs=rungs,
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


def _spearman(losses: Array, reference: Array) -> float:
    """Return the correlation of ranks; 0 where all of one side are equal."""
    if np.ptp(rankdata(losses)) == 0 or np.ptp(rankdata(reference)) == 0:
        return 0.0
    return float(spearmanr(rankdata(losses), rankdata(reference)).statistic)


def _resampled(losses: Array, reference: Array) -> Array:
    """Return the correlation of ranks for each of many draws of the configurations."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(losses), size=(N_RESAMPLES, len(losses)))
    return np.asarray([_spearman(losses[rows], reference[rows]) for rows in drawn])


def _gaps(looks: Mapping[str, Array], reference: Array) -> Array:
    """Return by how much the complete look ranks better than the cut, for each of the draws."""
    gaps: Array = _resampled(looks[COMPLETE], reference) - _resampled(looks[CUT], reference)
    return gaps


def _interval(values: Array, form: str) -> str:
    low, high = np.quantile(values, (0.1, 0.9))
    return f"{low:{form}} to {high:{form}}"


def _price(gaps: Array) -> tuple[float, float]:
    """Return the mean and its standard error, over the configurations that did not diverge."""
    finite = gaps[np.isfinite(gaps)]
    if len(finite) < 2:
        return float("nan"), float("nan")
    return float(finite.mean()), float(finite.std(ddof=1) / np.sqrt(len(finite)))


def _wsd(recipe: Recipe, warmup: float) -> Recipe:
    """Let a configuration train by `wsd`, with an average that does not depend on the length."""
    optimizer = replace(recipe.optimizer, schedule="wsd", warmup=warmup, averaging="ema")
    return replace(recipe, optimizer=optimizer)


def _bars(looks: Mapping[str, Array], ranks: Mapping[str, float], reference: Array) -> list[Bar]:
    error = float(_gaps(looks, reference).std())
    return [
        Bar(name="complete, 1/4 as long: Spearman above that of the cut, within one error",
            value=ranks[COMPLETE] - ranks[CUT], limit=-error, better="higher"),
        Bar(name="cut after 1/2: Spearman", value=ranks[LATE_CUT], limit=LATE, better="higher"),
    ]  # fmt: skip


if __name__ == "__main__":
    run_benchmark("Compare cheap looks at configurations.", measure, add_flags=add_flags)

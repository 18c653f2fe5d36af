"""What an ensemble of a search's own trials is worth, over many splits of images no trial saw.

    python benchmarks/ensembles_cifar10.py --data CIFAR10_FOLDER --work FOLDER
    python benchmarks/ensembles_cifar10.py --study FOLDER/studies/NAME

The first form searches (64 trials on 10,000 images, an hour and more on two cores), the second
takes the predictions of a finished study. The study's ens and test images are put together and
split anew, class by class, 20 times into three parts: the ensembles are fitted on the first,
reported on the second, and meet fresh images in the third. Gains are over the trial that the
search itself ranks first, with a temperature: what its user would have without an ensemble.

`--quick` makes 3 splits of a study that is given, held to the same bars. Without a study it
searches on the embedded digits; so few images can only show that the benchmark works, so that
run has no bars.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from harness import Bar, Outcome, run_benchmark
from jaxtyping import Float64, Int64
from rivals import autogluon_selection
from scipy.stats import t as student_t

from ensembles.builder import Ensemble, build, build_all, choose_method
from ensembles.cascade_fitting import fit_cascade
from ensembles.combination import Combination
from ensembles.metrics import accuracy, expected_calibration_error, log_loss
from ensembles.pool import Pool
from search.config import StudyConfig
from search.data.roles import Role, read_roles
from search.data.store import open_store
from search.predictions import has_predictions, read_predictions
from search.running import run_study
from search.study import Study, load_study

MIN_TRIALS = 60
BEST_TRIAL = "the search's best trial"
RIVAL = "AutoGluon's selection"
CHOICE = "the default choice"
CASCADE = "the choice as a cascade"
_ROLES: tuple[Role, ...] = ("ens", "test")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One method on one split; shares, not per cent."""

    accuracy: float
    log_loss: float
    ece: float
    n_members: float
    cost: float
    """In costs of the search's best trial."""
    optimism: float
    """Accuracy as reported minus accuracy on fresh images."""
    flattery: float
    """Accuracy on the images that it was fitted on minus accuracy on fresh images."""
    gain: float = 0.0
    """Accuracy on fresh images minus that of the search's best trial."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Three parts of the images."""

    fit: Pool
    reported: Pool
    fresh: Pool


def read_pool(study: Study) -> Pool:
    """Gather what all finished trials predict for the ens and the test images."""
    trials = [
        trial
        for trial in study.trials()
        if trial.state.is_finished() and has_predictions(study.paths.trial(trial.number))
    ]
    numbers = [trial.number for trial in trials]
    labels = open_store(study.record.store).labels
    roles = read_roles(study.paths.roles)
    predictions = [read_predictions(study.paths, role, numbers) for role in _ROLES]
    return Pool.from_arrays(
        log_probabilities=np.concatenate(predictions, axis=1),
        labels=np.concatenate([np.asarray(labels[roles.rows(role)]) for role in _ROLES]),
        names=[str(number) for number in numbers],
        costs=[float(trial.user_attrs["milliseconds"]) for trial in trials],
        class_names=study.record.class_names,
    )


def split_three_ways(pool: Pool, seed: int) -> Split:
    """Split the images of each class at random into thirds."""
    generator = np.random.default_rng(seed)
    part = np.empty(pool.n_images, dtype=np.int64)
    for label in range(pool.n_classes):
        rows = generator.permutation(np.flatnonzero(pool.labels == label))
        part[rows] = np.arange(len(rows)) % 3
    fit, reported, fresh = (pool.select_images(np.flatnonzero(part == each)) for each in range(3))
    return Split(fit=fit, reported=reported, fresh=fresh)


def score_split(split: Split, best_trial: str, seed: int) -> dict[str, Scores]:
    """Fit all methods and their rivals on one split, and score them on fresh images."""
    ensembles = {BEST_TRIAL: build(split.fit.select_names([best_trial]), method="single")}
    ensembles |= {str(method): each for method, each in build_all(split.fit, seed=seed).items()}
    ensembles[CHOICE] = ensembles[choose_method(split.fit)]
    ensembles["llp, any number of members"] = build(split.fit, method="llp", max_members=64)
    ensembles[RIVAL] = _fit_rival(split.fit)
    single = _cost(ensembles[BEST_TRIAL], split.fit)
    scores = {
        name: _score(
            [ensemble.predict(each) for each in (split.fit, split.reported, split.fresh)],
            [each.labels for each in (split.fit, split.reported, split.fresh)],
            n_members=len(ensemble.names),
            cost=_cost(ensemble, split.fit) / single,
        )
        for name, ensemble in ensembles.items()
    }
    scores[CASCADE] = _score_cascade(ensembles[CHOICE], split, single)
    base = scores[BEST_TRIAL].accuracy
    return {name: replace(each, gain=each.accuracy - base) for name, each in scores.items()}


def _fit_rival(pool: Pool) -> Ensemble:
    weights = autogluon_selection(np.exp(pool.log_probabilities), pool.labels)
    members = np.flatnonzero(weights)
    return Ensemble(
        method="greedy",
        members=tuple(int(member) for member in members),
        names=tuple(pool.names[member] for member in members),
        combination=Combination(
            method="greedy", space="probability", weights=tuple(weights[members].tolist())
        ),
        n_images=pool.n_images,
    )


def _cost(ensemble: Ensemble, pool: Pool) -> float:
    return float(pool.select_names(ensemble.names).costs.sum())


def _score(
    predictions: Sequence[Float64[np.ndarray, "images classes"]],
    labels: Sequence[Int64[np.ndarray, " images"]],
    *,
    n_members: float,
    cost: float,
) -> Scores:
    fitted, reported, fresh = (
        accuracy(each, true) for each, true in zip(predictions, labels, strict=True)
    )
    return Scores(
        accuracy=fresh,
        log_loss=log_loss(predictions[-1], labels[-1]),
        ece=expected_calibration_error(predictions[-1], labels[-1]),
        n_members=n_members,
        cost=cost,
        optimism=reported - fresh,
        flattery=fitted - fresh,
    )


def _score_cascade(ensemble: Ensemble, split: Split, single: float) -> Scores:
    cascade = fit_cascade(ensemble, split.fit)
    pools = [
        each.select_names(ensemble.names) for each in (split.fit, split.reported, split.fresh)
    ]
    results = [cascade.run(each.log_probabilities) for each in pools]
    share = results[-1].cost_share(cascade, pools[0].costs)
    return _score(
        [result.log_probabilities for result in results],
        [each.labels for each in pools],
        n_members=float(results[-1].n_members_run.mean()),
        cost=share * float(pools[0].costs.sum()) / single,
    )


def measure(flags: argparse.Namespace) -> Outcome:
    """Score all methods on many splits; see the module."""
    study = _find_study(flags)
    pool = read_pool(study)
    full = not flags.quick or flags.study is not None
    if full and pool.n_models < MIN_TRIALS:
        print(
            f"the benchmark needs a study of {MIN_TRIALS} trials with predictions, "
            f"{study.name!r} has {pool.n_models}.",
            file=sys.stderr,
        )
        sys.exit(3)
    n_splits = 3 if flags.quick else 20
    best_trial = str(study.leaders()[0].number)
    splits = [
        score_split(split_three_ways(pool, seed), best_trial, seed) for seed in range(n_splits)
    ]
    names = list(splits[0])
    means = {
        name: {
            field: float(np.mean([getattr(split[name], field) for split in splits]))
            for field in Scores.__dataclass_fields__
        }
        for name in names
    }
    optimism, gain = (
        {name: _interval([getattr(split[name], field) for split in splits]) for name in names}
        for field in ("optimism", "gain")
    )
    return Outcome(
        title=f"{pool.n_models} trials of study {study.name}, {pool.n_images:,} images, "
        f"{n_splits} splits",
        headings=("on fresh images", "accuracy", "log-loss", "ECE", "members", "cost",
                  "gain", "optimism", "on fitted rows"),
        rows=[_row(name, means[name], gain[name], optimism[name]) for name in names],
        bars=_bars(means, optimism) if full else [],
        figures={"means": means, "gain": gain, "optimism": optimism, "n_trials": pool.n_models},
        remarks=(
            f"gain: points of accuracy over {BEST_TRIAL}, number {best_trial}; ±: 95 % interval;",
            "optimism: accuracy as reported on the second third minus that on fresh images;",
            "on fitted rows: what a report on the images of the fit would have promised on top",
        ),
    )  # fmt: skip


def _bars(
    means: Mapping[str, Mapping[str, float]], optimism: Mapping[str, tuple[float, float]]
) -> list[Bar]:
    choice, single, rival, cascade = (means[name] for name in (CHOICE, BEST_TRIAL, RIVAL, CASCADE))
    low, high = (100 * bound for bound in optimism[CHOICE])
    percent, points = " %", " points"
    return [
        Bar(name="optimism's interval, low end", value=low, limit=0, better="lower", unit=points),
        Bar(name="optimism's interval, high end", value=high, limit=0, better="higher",
            unit=points),
        Bar(name="accuracy above AutoGluon's selection", better="higher", limit=0.5, unit=points,
            value=100 * (choice["accuracy"] - rival["accuracy"])),
        Bar(name="errors of the best single trial that are gone", better="higher", limit=10,
            value=100 * (choice["accuracy"] - single["accuracy"]) / (1 - single["accuracy"]),
            unit=percent),
        Bar(name="log-loss of the best single trial that is gone", better="higher", limit=10,
            value=100 * (1 - choice["log_loss"] / single["log_loss"]), unit=percent),
        Bar(name="accuracy that the cascade loses", better="lower", limit=0.2, unit=points,
            value=100 * (choice["accuracy"] - cascade["accuracy"])),
        Bar(name="cost of the cascade, of the full ensemble", better="lower", limit=50,
            value=100 * cascade["cost"] / choice["cost"], unit=percent),
    ]  # fmt: skip


def _row(
    name: str,
    means: Mapping[str, float],
    gain: tuple[float, float],
    optimism: tuple[float, float],
) -> tuple[str, ...]:
    is_vote = name in ("vote", "weighted_vote")  # shares of votes are no probabilities
    return (
        name,
        f"{100 * means['accuracy']:.2f} %",
        "-" if is_vote else f"{means['log_loss']:.4f}",
        "-" if is_vote else f"{100 * means['ece']:.1f} %",
        f"{means['n_members']:.1f}",
        f"{means['cost']:.1f} x",
        _with_half_width(gain),
        _with_half_width(optimism),
        f"{100 * means['flattery']:+.2f}",
    )


def _with_half_width(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{50 * (low + high):+.2f} ± {50 * (high - low):.2f}"


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean, Student's."""
    half = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _find_study(flags: argparse.Namespace) -> Study:
    if flags.study is not None:
        return load_study(flags.study.name, studies=flags.study.parent)
    if flags.data is not None and flags.work is not None:
        searched = StudyConfig(
            name="pool", data=str(flags.data), limit_train=10_000, epochs=16, trials=64, keep=64,
            seed=1,
        )  # fmt: skip
        return run_study(searched, studies=flags.work).study
    if not flags.quick:
        print("say --study FOLDER, or --data FOLDER with --work FOLDER; see --help.",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    small = StudyConfig(data="digits", trials=8, epochs=2, workers=2)
    return run_study(small, studies=Path(tempfile.mkdtemp(prefix="ensembles-"))).study


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", type=Path, help="folder of a finished study")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as folders of images")
    parser.add_argument("--work", type=Path, help="where the search's study shall lie")


if __name__ == "__main__":
    run_benchmark("Score ensembles of a study's trials on fresh images.", measure,
                  add_flags=_add_flags)  # fmt: skip

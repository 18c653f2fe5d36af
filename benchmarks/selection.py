"""What it costs to choose and weigh an ensemble's members, beside the loops of other tools.

    python benchmarks/selection.py

Times are of the process's CPU, in one thread, since other work on the machine would blur wall
time; of several repeats the fastest. The other tools' loops are timed for one round of 25.
"""

import argparse

import numpy as np
from harness import Bar, Outcome, fastest_seconds, run_benchmark
from rivals import N_DRAWS, autogluon_selection, autosklearn_selection
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from ensembles.log_linear import fit_log_linear
from ensembles.pool import Pool
from ensembles.selection import select_by_accuracy, select_greedily
from ensembles.weighting import fit_simplex, mixture_gains

N_IMAGES = 10_000


def make_pool(n_models: int, n_classes: int, n_images: int = N_IMAGES, seed: int = 0) -> Pool:
    """Draw models of 55 to 75 % accuracy (10 classes) whose errors are correlated."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(n_classes, size=n_images)
    truth = np.eye(n_classes, dtype=np.float32)[labels]
    shape = (n_images, n_classes)
    shared = generator.standard_normal(shape, dtype=np.float32)
    models = []
    for _ in range(n_models):
        own = generator.standard_normal(shape, dtype=np.float32)
        skill = generator.uniform(2.0, 2.8)
        sharpness = generator.uniform(0.7, 1.4)
        models.append(sharpness * (skill * truth + 0.8 * shared + 0.9 * own))
    return Pool.from_arrays(logits=models, labels=labels)


def measure(flags: argparse.Namespace) -> Outcome:
    """Time all methods; see the module."""
    repeats = 3 if flags.quick else 7
    with threadpool_limits(1):
        small = make_pool(100, 10)
        true_class = small.true_class()
        greedy_100 = _greedy_of(small, repeats)
        simplex_100 = fastest_seconds(lambda: fit_simplex(true_class), repeats)
        gap = _certificate(true_class)
        llp_32 = fastest_seconds(lambda: _llp(small.select(range(32))), repeats)
        probabilities = np.exp(small.log_probabilities)
        by_accuracy = fastest_seconds(
            lambda: select_by_accuracy(probabilities, small.labels, small.costs), repeats
        )
        autogluon = fastest_seconds(
            lambda: autogluon_selection(probabilities, small.labels, n_draws=1), 1
        )
        autosklearn = fastest_seconds(
            lambda: autosklearn_selection(probabilities, small.labels, n_draws=1), 1
        )
        same = _choose_the_same(n_models=12 if flags.quick else 40)
        n_images = N_IMAGES // (5 if flags.quick else 1)
        greedy_wide = _greedy_of(make_pool(100, 100, n_images))
        greedy_narrow = _greedy_of(make_pool(100, 10, n_images)) if flags.quick else greedy_100
        n_many = 300 if flags.quick else 1000
        many = make_pool(n_many, 3)
        greedy_1000 = _greedy_of(many) * 1000 / n_many
    ratio = autogluon * N_DRAWS / greedy_100
    rows = [
        ("greedy, 100 candidates, 10 classes", greedy_100, 7.8),
        (
            f"greedy, 100 candidates, 100 classes{' (2,000 images)' if flags.quick else ''}",
            greedy_wide,
            6.2,
        ),
        (f"greedy, 1,000 candidates{' (300, scaled)' if flags.quick else ''}", greedy_1000, 75.0),
        ("greedy by accuracy, 100 candidates", by_accuracy, 65.0),
        ("simplex, 100 candidates", simplex_100, 11.0),
        ("llp, 32 candidates, 10 classes", llp_32, 49.0),
        ("AutoGluon's loop, 25 rounds (one timed)", autogluon * N_DRAWS, 7817.0),
        ("auto-sklearn's loop, 25 rounds (one timed)", autosklearn * N_DRAWS, 7605.0),
    ]
    return Outcome(
        title=f"choosing members from predictions for {N_IMAGES:,} images",
        headings=("", "CPU ms", "known, ms"),
        rows=[(name, f"{1000 * value:.1f}", f"{known:,.1f}") for name, value, known in rows],
        bars=[
            Bar(name="greedy, 100 candidates", value=1000 * greedy_100, limit=10, better="lower",
                unit=" ms"),
            Bar(name="greedy, 1,000 candidates", value=1000 * greedy_1000, limit=100,
                better="lower", unit=" ms"),
            Bar(name="greedy, 100 classes in place of 10", value=greedy_wide / greedy_narrow,
                limit=2, better="lower", unit=" times"),
            Bar(name="greedy by accuracy, 100 candidates", value=1000 * by_accuracy, limit=70,
                better="lower", unit=" ms"),
            Bar(name="simplex, 100 candidates", value=1000 * simplex_100, limit=16.5,
                better="lower", unit=" ms"),
            Bar(name="simplex, above the optimum", value=gap, limit=1e-4, better="lower",
                unit=" nats"),
            Bar(name="llp, 32 candidates", value=1000 * llp_32, limit=60, better="lower",
                unit=" ms"),
            Bar(name="faster than AutoGluon's loop", value=ratio, limit=500, better="higher",
                unit=" times"),
            Bar(name="pools on which the three loops choose alike", value=same, limit=1,
                better="higher"),
        ],
        figures={name: value for name, value, _ in rows} | {"speed-up": ratio, "gap": gap},
    )  # fmt: skip


def _greedy(true_class: np.ndarray, costs: np.ndarray) -> np.ndarray:
    return select_greedily(true_class, costs, n_rounds=N_DRAWS)


def _greedy_of(pool: Pool, repeats: int = 3) -> float:
    """Time the choice alone; the true class's probabilities are gathered once for all methods."""
    true_class = pool.true_class()
    return fastest_seconds(lambda: _greedy(true_class, pool.costs), repeats)


def _llp(pool: Pool) -> np.ndarray:
    return fit_log_linear(pool, max_members=pool.n_models)


def _certificate(true_class: np.ndarray) -> float:
    """Return by how much the log-loss may lie above the lowest possible."""
    n_images = true_class.shape[1]
    importance = np.full(n_images, 1 / n_images)
    gains = mixture_gains(true_class.astype(np.float64), fit_simplex(true_class), importance)
    return float(gains.max()) - 1


def _choose_the_same(n_models: int) -> float:
    """Return the share of three pools on which all three loops end with the same weights."""
    alike = []
    for seed in range(3):
        pool = make_pool(n_models, 10, 1000, seed)
        probabilities = np.exp(pool.log_probabilities)
        ours = _greedy(pool.true_class(), pool.costs)
        autogluon = autogluon_selection(probabilities, pool.labels)
        last = autosklearn_selection(probabilities, pool.labels)
        members = set(np.flatnonzero(ours))
        alike.append(
            np.allclose(ours, autogluon, atol=1e-9) and members <= set(np.flatnonzero(last))
        )
    return float(np.mean(alike))


if __name__ == "__main__":
    run_benchmark("Time the choice of members.", measure)

"""How often the way from a pool to the verdict calls a gain that is none, or misses one."""

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from ensembles.builder import build
from ensembles.comparison import compare
from ensembles.pool import Pool

N_RUNS = 200
N_FIT, N_TEST = 150, 250
N_MODELS, N_CLASSES = 5, 4

Draw = Callable[[np.random.Generator], Pool]


def draw_guesses(generator: np.random.Generator, share: float) -> Pool:
    """Draw models that all know the same images, and guess the rest, each for itself."""
    n_images = N_FIT + N_TEST
    labels = generator.integers(N_CLASSES, size=n_images)
    logits = generator.normal(size=(N_MODELS, n_images, N_CLASSES))
    known = np.flatnonzero(generator.random(n_images) >= share)
    logits[:, known, labels[known]] += 8
    return Pool.from_arrays(logits=logits, labels=labels)


def draw_identical(generator: np.random.Generator) -> Pool:
    labels = generator.integers(N_CLASSES, size=N_FIT + N_TEST)
    logits = generator.normal(size=(len(labels), N_CLASSES))
    logits[np.arange(len(labels)), labels] += 1
    return Pool.from_arrays(logits=np.stack([logits] * N_MODELS), labels=labels)


def draw_gains(generator: np.random.Generator) -> Pool:
    """Draw models whose errors are their own, so that any mean of them is better."""
    labels = generator.integers(N_CLASSES, size=N_FIT + N_TEST)
    logits = generator.normal(size=(N_MODELS, len(labels), N_CLASSES))
    logits[:, np.arange(len(labels)), labels] += 1.2
    return Pool.from_arrays(logits=logits, labels=labels)


def judge(draw: Draw, *, n_runs: int = N_RUNS) -> tuple[Counter[str], Counter[str]]:
    """Count verdicts and methods of the default rule over many pools."""
    generator = np.random.default_rng(0)
    verdicts: Counter[str] = Counter()
    methods: Counter[str] = Counter()
    for _ in range(n_runs):
        pool = draw(generator)
        fit_pool = pool.select_images(np.arange(N_FIT))
        fresh = pool.select_images(np.arange(N_FIT, N_FIT + N_TEST))
        ensemble = build(fit_pool)
        single = build(fit_pool, method="single")
        comparison = compare(
            ensemble.predict(fresh), single.predict(fresh), fresh.labels, n_resamples=2
        )
        verdicts[comparison.verdict] += 1
        methods[ensemble.method] += 1
    return verdicts, methods


# The exact test is conservative: each side has 2.5 % of the error, or less where few images
# differ. A true rate of 2.5 % exceeds 10 of 200 once in 80 cases.
@pytest.mark.slow
def test_guesses_are_seldom_called_a_gain_or_a_loss() -> None:
    # Pure noise makes so many errors that the rule fits a log-linear pool; with few guesses it
    # bags.
    shares = itertools.cycle([1.0, 0.2])

    verdicts, methods = judge(lambda generator: draw_guesses(generator, next(shares)))

    assert verdicts["better"] <= 0.05 * N_RUNS
    assert verdicts["worse"] <= 0.05 * N_RUNS
    assert methods == {"llp": N_RUNS / 2, "bagged_greedy": N_RUNS / 2}


@pytest.mark.slow
def test_identical_models_are_never_called_a_gain() -> None:
    verdicts, _ = judge(draw_identical)

    assert verdicts == {"not distinguishable": N_RUNS}


@pytest.mark.slow
def test_a_real_gain_is_called_one() -> None:
    verdicts, _ = judge(draw_gains, n_runs=50)

    assert verdicts["better"] >= 45
    assert verdicts["worse"] == 0

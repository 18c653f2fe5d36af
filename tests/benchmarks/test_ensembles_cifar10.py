from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ensembles.pool import Pool


@pytest.fixture
def benchmark(load_script: Callable[[str], Any]) -> Any:
    return load_script("ensembles_cifar10")


def make_pool(*, n_models: int = 12, n_images: int = 1800) -> Pool:
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=n_images)
    logits = generator.normal(size=(n_models, n_images, 4)) + 1.5 * np.eye(4)[labels]
    return Pool.from_arrays(logits=logits, labels=labels)


def test_thirds_are_disjoint_hold_everything_and_have_equal_shares_of_each_class(
    benchmark: Any,
) -> None:
    pool = make_pool()

    split = benchmark.split_three_ways(pool, 3)

    parts = (split.fit, split.reported, split.fresh)
    rows = np.concatenate([part.log_probabilities[0] for part in parts])
    assert len(np.unique(rows, axis=0)) == len(rows) == pool.n_images
    counts = np.array([np.bincount(part.labels, minlength=4) for part in parts])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_another_seed_gives_other_thirds(benchmark: Any) -> None:
    pool = make_pool()

    fits = [benchmark.split_three_ways(pool, seed).fit for seed in (1, 1, 2)]

    np.testing.assert_array_equal(fits[0].labels, fits[1].labels)
    assert not np.array_equal(fits[0].labels, fits[2].labels)


def test_figures_of_the_best_trial_are_its_own_and_gains_are_over_it(benchmark: Any) -> None:
    split = benchmark.split_three_ways(make_pool(), 0)

    scores = benchmark.score_split(split, "7", 0)

    trial = scores[benchmark.BEST_TRIAL]
    right = split.fresh.log_probabilities[7].argmax(axis=1) == split.fresh.labels
    assert trial.accuracy == pytest.approx(right.mean())
    assert (trial.gain, trial.cost, trial.n_members) == (0.0, 1.0, 1)
    for method in ("llp", benchmark.CHOICE, benchmark.CASCADE, benchmark.RIVAL):
        assert scores[method].gain == pytest.approx(scores[method].accuracy - trial.accuracy)
    assert scores["llp"].gain > 0.05


def test_the_interval_of_a_mean_is_students(benchmark: Any) -> None:
    low, high = benchmark._interval([1.0, 2.0, 3.0])

    # 2 plus and minus 4.3027 (Student, 2 degrees of freedom) times 1 / sqrt(3)
    assert (low, high) == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-4)

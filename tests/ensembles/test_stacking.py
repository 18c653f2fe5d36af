from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from ensembles.builder import build
from ensembles.metrics import log_loss
from ensembles.pool import Pool
from ensembles.stacking import (
    PULLS,
    _by_class,
    _loss_and_slopes,
    count_images_needed,
    fit_stack,
)


def test_stacking_asks_for_500_images_or_20_per_class() -> None:
    assert count_images_needed(10) == 500
    assert count_images_needed(100) == 2000


def test_the_slopes_are_those_of_the_loss(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_models=2, n_images=40, n_classes=3)
    data = _by_class(pool, np.arange(40))
    center = np.array([0.4, 0.3])
    point = np.random.default_rng(0).normal(size=(3, 3)) * 0.3

    _, slopes = _loss_and_slopes(point, data, center, pull=0.1)

    numeric = approx_fprime(
        point.ravel(),
        lambda flat: _loss_and_slopes(flat.reshape(3, 3), data, center, pull=0.1)[0],
        1e-3,
    )
    np.testing.assert_allclose(slopes.ravel(), numeric, atol=2e-3)


def test_a_member_that_knows_one_class_only_is_trusted_there() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=3000)
    logits = generator.normal(size=(2, 3000, 3))
    for member, known in ((0, (0, 1)), (1, (2,))):
        rows = np.isin(labels, known)
        logits[member, rows, labels[rows]] += 2.5
    pool = Pool.from_arrays(logits=logits, labels=labels)

    stacked = fit_stack(pool, np.array([0.5, 0.5]))

    first, second = stacked.class_weights
    assert first[:2].min() > first[2]
    assert second[2] > second[:2].max()


def test_without_differences_between_classes_the_strongest_pull_is_good_enough(
    random_pool: Callable[..., Pool],
) -> None:
    pool = random_pool(n_models=3, n_images=500)

    stacked = fit_stack(pool, np.array([0.4, 0.4, 0.4]))

    assert stacked.pull >= PULLS[2]
    assert np.abs(stacked.class_weights - 0.4).max() < 0.2


def test_biases_repair_class_shares_that_the_members_never_saw() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random(4000) < 0.05).astype(np.int64)
    logits = generator.normal(size=(1, 4000, 2))
    logits[0, np.arange(4000), labels] += 1.5
    pool = Pool.from_arrays(logits=logits, labels=labels)

    ensemble = build(pool, method="stack")

    single = build(pool, method="single")
    assert ensemble.combination.class_biases[0] > ensemble.combination.class_biases[1]
    assert log_loss(ensemble.predict(pool), labels) < log_loss(single.predict(pool), labels) - 0.1


def test_the_same_seed_gives_the_same_stack(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_models=3, n_images=500)

    first, second = (fit_stack(pool, np.full(3, 0.4), seed=3) for _ in range(2))

    np.testing.assert_array_equal(first.class_weights, second.class_weights)
    assert first.pull == pytest.approx(second.pull)

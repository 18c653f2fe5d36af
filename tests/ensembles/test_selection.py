from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensembles.errors import EnsembleError
from ensembles.pool import Pool
from ensembles.selection import (
    keep_heaviest,
    rank_models,
    select_best,
    select_by_accuracy,
    select_by_bagging,
    select_greedily,
)

PoolOf = Callable[[Sequence[Sequence[float]]], Pool]


def select_plainly(true_class: np.ndarray, n_rounds: int) -> np.ndarray:
    """Select as the paper says: average every candidate into the bag, take the best."""
    total = np.zeros_like(true_class[0])
    counts = np.zeros(len(true_class), dtype=np.int64)
    best_counts, best_loss = counts, np.inf
    for n_drawn in range(1, n_rounds + 1):
        sums = [np.log(total + model).sum(dtype=np.float64) for model in true_class]
        index = int(np.argmax(sums))
        total = total + true_class[index]
        counts[index] += 1
        loss = np.log(n_drawn) - sums[index] / len(total)
        if loss < best_loss - 1e-9:
            best_counts, best_loss = counts.copy(), loss
    weights: np.ndarray = best_counts / best_counts.sum()
    return weights


def test_models_are_ranked_by_loss_then_cost_then_index(pool_of: PoolOf) -> None:
    plain = pool_of([[0.7], [0.9], [0.7], [0.7]])
    pool = Pool.from_arrays(
        log_probabilities=plain.log_probabilities, labels=plain.labels, costs=[2, 9, 1, 2]
    )

    assert rank_models(pool).tolist() == [1, 2, 0, 3]


def test_the_best_models_share_the_weight(pool_of: PoolOf) -> None:
    pool = pool_of([[0.6], [0.9], [0.7]])

    assert select_best(pool, max_members=2).tolist() == [0, 0.5, 0.5]
    np.testing.assert_allclose(select_best(pool, max_members=9), 1 / 3)


def test_all_weight_goes_to_a_model_that_beats_every_mixture(pool_of: PoolOf) -> None:
    pool = pool_of([[0.6, 0.5], [0.9, 0.8], [0.7, 0.7]])

    assert select_greedily(pool.true_class(), pool.costs).tolist() == [0, 1, 0]


def test_two_models_that_complete_each_other_share_the_weight(pool_of: PoolOf) -> None:
    pool = pool_of([[0.9, 0.1], [0.1, 0.9], [0.4, 0.4]])

    # Round one takes the third, whose loss is lowest alone; the best prefix is long, so that
    # its share shrinks.
    weights = select_greedily(pool.true_class(), pool.costs, n_rounds=25)

    assert weights[:2] == pytest.approx([0.48, 0.48])
    assert weights[2] == pytest.approx(0.04)


def test_of_equal_models_the_cheapest_is_drawn(pool_of: PoolOf) -> None:
    pool = pool_of([[0.9, 0.8]] * 3)

    weights = select_greedily(pool.true_class(), np.array([3.0, 1.0, 1.0]))

    assert weights.tolist() == [0, 1, 0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_models=st.integers(1, 12),
    n_images=st.integers(1, 60),
    sharpness=st.floats(0.1, 10),
    repeated=st.booleans(),
)
def test_lazy_selection_draws_what_plain_selection_draws(
    seed: int, n_models: int, n_images: int, sharpness: float, *, repeated: bool
) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(n_models, n_images)) * sharpness
    true_class = np.maximum(1 / (1 + np.exp(-scores)), 1e-7).astype(np.float32)
    if repeated:
        true_class = np.vstack([true_class, true_class])

    lazy = select_greedily(true_class, np.ones(len(true_class)), n_rounds=15)

    np.testing.assert_array_equal(lazy, select_plainly(true_class, 15))


def test_a_limit_of_members_is_kept(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_models=12)
    free = select_greedily(pool.true_class(), pool.costs)

    weights = select_greedily(pool.true_class(), pool.costs, max_members=2)

    assert np.count_nonzero(free) > 2
    assert np.count_nonzero(weights) == 2
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("select", [select_greedily, select_by_bagging])
def test_weights_are_shares_that_sum_to_one(
    select: Callable[..., np.ndarray], random_pool: Callable[..., Pool]
) -> None:
    pool = random_pool()

    weights = select(pool.true_class(), pool.costs)

    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)


def test_a_permuted_pool_gives_permuted_weights(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool()
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])

    weights = select_greedily(pool.true_class(), pool.costs)
    permuted = select_greedily(pool.select(order).true_class(), pool.costs)

    np.testing.assert_array_equal(permuted, weights[order])


def test_bagging_spreads_weight_over_more_models_than_one_selection(
    random_pool: Callable[..., Pool],
) -> None:
    pool = random_pool(n_models=20, n_images=60)
    single = select_greedily(pool.true_class(), pool.costs)

    bagged = select_by_bagging(pool.true_class(), pool.costs)

    assert np.count_nonzero(bagged) > np.count_nonzero(single)


def test_bagging_repeats_itself_for_the_same_seed(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool()

    first, second, other = (
        select_by_bagging(pool.true_class(), pool.costs, seed=seed) for seed in (1, 1, 2)
    )

    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_bagging_one_model_gives_it_all_the_weight(pool_of: PoolOf) -> None:
    pool = pool_of([[0.6, 0.5]])

    assert select_by_bagging(pool.true_class(), pool.costs).tolist() == [1]


def test_the_heaviest_are_kept_and_of_equal_ones_the_cheapest() -> None:
    kept = keep_heaviest(
        np.array([0.2, 0.2, 0.5, 0.1]), np.array([2.0, 1.0, 1.0, 1.0]), max_members=2
    )

    np.testing.assert_allclose(kept, [0, 2 / 7, 5 / 7, 0])


def test_a_selection_of_no_rounds_is_refused(pool_of: PoolOf) -> None:
    pool = pool_of([[0.6]])

    with pytest.raises(EnsembleError, match="n_rounds must be at least 1, got 0"):
        select_greedily(pool.true_class(), pool.costs, n_rounds=0)


def select_plainly_by_accuracy(
    probabilities: np.ndarray, labels: np.ndarray, costs: np.ndarray, n_rounds: int
) -> np.ndarray:
    """Average every candidate into the bag, count its errors on every image, take the best."""
    images = np.arange(len(labels))
    total = np.zeros_like(probabilities[0])
    counts = np.zeros(len(probabilities), dtype=np.int64)
    best_counts, best = counts, (len(labels) + 1, np.inf)
    for n_drawn in range(1, n_rounds + 1):
        scores = []
        for index, model in enumerate(probabilities):
            mixture = total + model
            right = mixture[images, labels]
            rivals = mixture.copy()
            rivals[images, labels] = -1
            wrong = int((rivals.max(axis=1) >= right).sum())
            loss = np.log(n_drawn) - np.log(right).sum(dtype=np.float64) / len(labels)
            scores.append((wrong, float(loss), float(costs[index]), index))
        wrong, loss, _, index = min(scores)
        total = total + probabilities[index]
        counts[index] += 1
        if wrong < best[0] or (wrong == best[0] and loss < best[1] - 1e-9):
            best_counts, best = counts.copy(), (wrong, loss)
    weights: np.ndarray = best_counts / best_counts.sum()
    return weights


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_models=st.integers(1, 12),
    n_images=st.integers(1, 600),
    n_classes=st.integers(2, 6),
    steps=st.sampled_from([4, 64, 1024]),
    repeated=st.booleans(),
)
def test_contested_images_are_enough_to_select_by_accuracy(
    seed: int, n_models: int, n_images: int, n_classes: int, steps: int, *, repeated: bool
) -> None:
    generator = np.random.default_rng(seed)
    # Multiples of a power of 2, so that sums are exact, whatever their order, and ties are many.
    shape = (n_models, n_images, n_classes)
    probabilities = generator.integers(1, steps, size=shape).astype(np.float32) / steps
    if repeated:
        probabilities = np.concatenate([probabilities, probabilities])
    labels = generator.integers(n_classes, size=n_images)
    costs = generator.integers(1, 3, size=len(probabilities)).astype(np.float64)

    lazy = select_by_accuracy(probabilities, labels, costs, n_rounds=12)

    plain = select_plainly_by_accuracy(probabilities, labels, costs, 12)
    np.testing.assert_array_equal(lazy, plain)


def test_selecting_by_accuracy_prefers_fewer_errors_to_a_lower_loss() -> None:
    # The first model is right twice, barely; the second once, surely.
    sure_of_one = [[0.98, 0.02], [0.45, 0.55]]
    barely_right = [[0.51, 0.49], [0.51, 0.49]]
    probabilities = np.array([sure_of_one, barely_right])
    labels = np.zeros(2, dtype=np.int64)

    weights = select_by_accuracy(probabilities, labels, np.ones(2), n_rounds=1)

    assert weights.tolist() == [0, 1]
    true_class = probabilities[:, :, 0]
    assert select_greedily(true_class, np.ones(2), n_rounds=1).tolist() == [1, 0]


def test_selecting_by_accuracy_keeps_a_limit_of_members(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_models=12)
    probabilities = np.exp(pool.log_probabilities)

    weights = select_by_accuracy(probabilities, pool.labels, pool.costs, max_members=2)

    assert np.count_nonzero(weights) == 2
    assert weights.sum() == pytest.approx(1)

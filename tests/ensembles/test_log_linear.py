import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.optimize import OptimizeResult, approx_fprime, minimize
from scipy.special import log_softmax

from ensembles.budget import Limit
from ensembles.log_linear import LogLinearProblem, fit_log_linear, pose_log_linear
from ensembles.pool import Pool


def lowest_loss(problem: LogLinearProblem, members: Sequence[int]) -> OptimizeResult:
    """Minimize the penalized loss over the weights of some models; all others have none."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        full = np.zeros(problem.n_models)
        full[list(members)] = weights
        value, slopes = problem.loss_and_slopes(full)
        return value, slopes[list(members)]

    start = np.full(len(members), 1 / len(members))
    return minimize(loss, start, jac=True, bounds=[(0, None)] * len(members))


def test_the_loss_is_the_log_loss_and_the_pull(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_models=6, n_images=50)
    weights = np.array([0.1, 0.7, 0.0, 0.3, 0.2, 0.5])
    combined = log_softmax(np.tensordot(weights, pool.log_probabilities, axes=1), axis=1)
    prior = np.full(6, 0.2)
    prior[pool.log_losses().argmax()] = 0

    loss, _ = pose_log_linear(pool).loss_and_slopes(weights)

    expected = -combined[np.arange(50), pool.labels].mean()
    expected += 30 / 50 / 2 * np.square(weights - prior).sum()
    assert loss == pytest.approx(expected, rel=1e-6)


def test_the_slopes_are_those_of_the_loss(random_pool: Callable[..., Pool]) -> None:
    problem = pose_log_linear(random_pool(n_images=60))
    weights = np.linspace(0.05, 0.4, 8)

    _, slopes = problem.loss_and_slopes(weights)

    numeric = approx_fprime(weights, lambda point: problem.loss_and_slopes(point)[0], 1e-3)
    np.testing.assert_allclose(slopes, numeric, atol=2e-3)


def test_one_known_model_gets_its_sharpness_back() -> None:
    generator = np.random.default_rng(0)
    true = log_softmax(generator.normal(size=(20_000, 3)) * 2, axis=1)
    labels = np.array([generator.choice(3, p=np.exp(row)) for row in true])
    too_sure = Pool.from_arrays(logits=(true * 2)[None], labels=labels)

    weights = fit_log_linear(too_sure, max_members=5)

    assert weights == pytest.approx([0.5], rel=0.05)


def test_without_images_to_speak_of_the_prior_decides(
    pool_of: Callable[[Sequence[Sequence[float]]], Pool],
) -> None:
    weights = fit_log_linear(pool_of([[0.6]] * 5), max_members=5)

    np.testing.assert_allclose(weights, 0.2, atol=0.01)


def test_copies_of_one_model_get_equal_weights_that_predict_the_same(
    random_pool: Callable[..., Pool],
) -> None:
    one = random_pool(n_models=1, n_images=5000)
    copies = one.select([0, 0, 0])

    weights = fit_log_linear(copies, max_members=3)

    assert np.ptp(weights) < 1e-3
    # Only the pull differs: 3 * (1/3)^2 is not 1^2.
    assert weights.sum() == pytest.approx(fit_log_linear(one, max_members=1)[0], abs=0.01)


def test_a_permuted_pool_gives_permuted_weights(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool()
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])

    weights = fit_log_linear(pool, max_members=8)
    permuted = fit_log_linear(pool.select(order), max_members=8)

    np.testing.assert_allclose(permuted, weights[order], atol=2e-3)


def test_a_limit_of_members_is_kept_at_less_loss_than_by_dropping_the_lightest(
    random_pool: Callable[..., Pool],
) -> None:
    pool = random_pool(n_models=12, n_images=1000)
    problem = pose_log_linear(pool)
    free = fit_log_linear(pool, max_members=12)
    truncated = np.where(free >= np.sort(free)[-3], free, 0)

    limited = fit_log_linear(pool, max_members=3)

    assert np.count_nonzero(free) > 3
    assert np.count_nonzero(limited) == 3
    assert problem.loss_and_slopes(limited)[0] < problem.loss_and_slopes(truncated)[0]


def test_models_worse_than_knowing_nothing_leave_one_that_hardly_speaks() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=3000)
    wrong = np.full((2, 3000, 2), 0.9)
    wrong[:, np.arange(3000), labels] = 0.1

    weights = fit_log_linear(Pool.from_arrays(probabilities=wrong, labels=labels), max_members=2)
    limited = fit_log_linear(Pool.from_arrays(probabilities=wrong, labels=labels), max_members=1)

    assert weights.tolist() == limited.tolist() == [0.05, 0]


@pytest.mark.parametrize("seed", range(4))
def test_both_ways_never_end_in_more_loss_than_one(
    random_pool: Callable[..., Pool], seed: int
) -> None:
    pool = random_pool(n_models=12, n_images=300, seed=seed)
    problem = pose_log_linear(pool)

    up = fit_log_linear(pool, max_members=3)
    both = fit_log_linear(pool, max_members=3, both_ways=True)

    assert np.count_nonzero(both) <= 3
    assert problem.loss_and_slopes(both)[0] <= problem.loss_and_slopes(up)[0] + 1e-6


def test_a_lone_member_is_not_pulled_to_a_fifth(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_models=8, n_images=60)

    weights = fit_log_linear(pool, max_members=1)

    (chosen,) = np.flatnonzero(weights)
    alone = lowest_loss(pose_log_linear(pool.select([int(chosen)]), max_members=1), [0])
    assert weights[chosen] == pytest.approx(alone.x[0], abs=0.01)


def test_a_dear_model_makes_room_for_several_cheap_ones() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=1000)
    logits = generator.normal(size=(5, 1000, 4))
    logits[:, np.arange(1000), labels] += np.array([1.9, 1.7, 1.7, 1.7, 1.7])[:, None]
    pool = Pool.from_arrays(logits=logits, labels=labels)
    limit = Limit(name="ms", costs=(1.0, 0.25, 0.25, 0.25, 0.25), maximum=1.0)

    weights = fit_log_linear(pool, max_members=5, limits=[limit])

    assert np.flatnonzero(weights).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(4))
def test_under_a_limit_the_members_are_nearly_the_best_there_are(
    random_pool: Callable[..., Pool], seed: int
) -> None:
    pool = random_pool(n_models=7, n_images=300, seed=seed)
    costs = np.random.default_rng(seed).uniform(0.1, 1, 7)
    limit = Limit(name="ms", costs=tuple(costs.tolist()), maximum=1.2)
    problem = pose_log_linear(pool)

    chosen = fit_log_linear(pool, max_members=5, limits=[limit])
    reached = problem.loss_and_slopes(chosen)[0]

    affordable = [
        members
        for size in (1, 2, 3, 4)
        for members in itertools.combinations(range(7), size)
        if costs[list(members)].sum() <= 1.2
    ]
    assert reached <= min(lowest_loss(problem, each).fun for each in affordable) + 0.01

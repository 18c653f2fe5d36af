from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensembles import weighting
from ensembles.errors import EnsembleError
from ensembles.pool import Pool
from ensembles.selection import select_greedily
from ensembles.weighting import fit_shrunk, fit_simplex, mixture_gains, select_simplex


def mean_loss(true_class: np.ndarray, weights: np.ndarray) -> float:
    return -float(np.log(weights @ true_class).mean())


def test_two_models_that_complete_each_other_get_half_each() -> None:
    weights = fit_simplex(np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.4]]))

    np.testing.assert_allclose(weights, [0.5, 0.5, 0], atol=1e-3)


def test_weights_follow_how_often_each_model_alone_is_right() -> None:
    # 3 of 4 images are explained by the first model alone: the shares themselves are optimal.
    weights = fit_simplex(np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]))

    np.testing.assert_allclose(weights, [0.75, 0.25], atol=0.01)


def test_identical_models_get_equal_weights() -> None:
    weights = fit_simplex(np.full((4, 3), 0.6))

    np.testing.assert_allclose(weights, 0.25)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_models=st.integers(1, 15),
    n_images=st.integers(1, 80),
    sharpness=st.floats(0.1, 12),
)
def test_the_certificate_holds_and_no_other_weights_are_better(
    seed: int, n_models: int, n_images: int, sharpness: float
) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(n_models, n_images)) * sharpness
    true_class = np.maximum(1 / (1 + np.exp(-scores)), 1e-7)

    weights = fit_simplex(true_class)

    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    gains = mixture_gains(true_class, weights, np.full(n_images, 1 / n_images))
    assert gains.max() - 1 <= 1e-4
    best = mean_loss(true_class, weights)
    for other in generator.dirichlet(np.ones(n_models), size=20):
        assert mean_loss(true_class, other) >= best - 1e-4


def test_a_permuted_pool_gives_permuted_weights(random_pool: Callable[..., Pool]) -> None:
    true_class = random_pool().true_class()
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])

    weights = fit_simplex(true_class)

    np.testing.assert_allclose(fit_simplex(true_class[order]), weights[order], atol=1e-3)


def test_a_search_that_may_take_no_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighting, "_MAX_STEPS", 1)

    with pytest.raises(EnsembleError, match=r"no weights within 0\.0001 nats"):
        fit_simplex(np.array([[0.9, 0.9], [0.1, 0.2]]))


def test_few_images_leave_the_weights_near_equal_and_many_do_not() -> None:
    clearly_better = np.array([[0.9], [0.3]])

    few = fit_shrunk(np.repeat(clearly_better, 3, axis=1))
    many = fit_shrunk(np.repeat(clearly_better, 3000, axis=1))

    assert 0.5 < few[0] < 0.6
    assert many[0] > 0.95


def test_a_useless_model_keeps_the_little_weight_that_the_prior_gives_it() -> None:
    weights = fit_shrunk(np.repeat([[0.9], [0.1]], 30_000, axis=1))

    assert 0 < weights[1] < 1e-3


def test_shrunk_weights_of_one_image_solve_the_quadratic() -> None:
    # Maximize log(w + 0.5 (1 - w)) + 15 log w + 15 log(1 - w): its slope is 0 where
    # 31 w^2 + 14 w - 15 = 0, so w = (45.34 - 14) / 62.
    weights = fit_shrunk(np.array([[1.0], [0.5]]))

    assert weights[0] == pytest.approx(0.5055, abs=2e-3)


def test_a_limit_of_members_is_kept_at_a_small_loss(random_pool: Callable[..., Pool]) -> None:
    true_class = random_pool(n_models=12, n_images=1000).true_class()
    free = fit_simplex(true_class)

    limited = select_simplex(true_class, max_members=3)

    assert np.count_nonzero(free) > 3
    assert np.count_nonzero(limited) == 3
    assert limited.sum() == pytest.approx(1)
    heaviest = np.argsort(-free)[:3]
    truncated = np.zeros_like(free)
    truncated[heaviest] = free[heaviest] / free[heaviest].sum()
    assert mean_loss(true_class, limited) <= mean_loss(true_class, truncated)


def test_a_limit_that_does_not_bind_changes_nothing(random_pool: Callable[..., Pool]) -> None:
    true_class = random_pool().true_class()

    np.testing.assert_array_equal(
        select_simplex(true_class, max_members=8), fit_simplex(true_class)
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("max_members", [1, 2, 3])
def test_few_members_are_never_worse_than_those_drawn_greedily(
    random_pool: Callable[..., Pool], seed: int, max_members: int
) -> None:
    true_class = random_pool(n_models=13, n_images=60, seed=seed, skill=0.5).true_class()

    chosen, drawn = (
        select_simplex(true_class, max_members=max_members),
        select_greedily(true_class, np.ones(13), max_members=max_members),
    )

    losses = [-np.log(weights @ true_class).mean() for weights in (chosen, drawn)]
    assert losses[0] <= losses[1] + 1e-6

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ensembles import builder
from ensembles.budget import Limit
from ensembles.builder import (
    MAX_CANDIDATES,
    Ensemble,
    build,
    build_all,
    choose_method,
    count_best_errors,
    explain_refusal,
)
from ensembles.calibration import log_loss_after_temperature
from ensembles.errors import EnsembleError
from ensembles.methods import Method
from ensembles.metrics import accuracy, log_loss
from ensembles.pool import Pool

RandomPool = Callable[..., Pool]
# A soup needs a pool that has some.
METHODS = tuple(method for method in builder.METHODS if method != "soup")


@pytest.fixture(scope="module")
def fitted() -> tuple[Pool, Pool, dict[Method, Ensemble]]:
    """All methods on one pool, and fresh images of the same kind."""
    generator = np.random.default_rng(0)
    labels = generator.integers(5, size=6000)
    shared = generator.normal(size=(6000, 5))
    shared[np.arange(6000), labels] += 1.5
    logits = shared + generator.normal(size=(12, 6000, 5)) * np.linspace(1, 2, 12)[:, None, None]
    pool = Pool.from_arrays(logits=logits * 1.5, labels=labels, names=list("abcdefghijkl"))
    fit_pool = pool.select_images(np.arange(1000))
    return fit_pool, pool.select_images(np.arange(1000, 6000)), build_all(fit_pool)


def test_every_method_is_built(fitted: tuple[Pool, Pool, dict[Method, Ensemble]]) -> None:
    _, _, ensembles = fitted

    assert tuple(ensembles) == METHODS
    assert all(ensembles[method].method == method for method in METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_no_ensemble_has_more_than_five_members_or_an_idle_one(
    method: Method, fitted: tuple[Pool, Pool, dict[Method, Ensemble]]
) -> None:
    pool, _, ensembles = fitted
    ensemble = ensembles[method]

    assert 1 <= len(ensemble.members) <= 5
    assert min(ensemble.combination.weights) > 0
    assert list(ensemble.combination.weights) == sorted(ensemble.combination.weights)[::-1]
    assert ensemble.names == tuple(pool.names[member] for member in ensemble.members)
    assert ensemble.n_images == 1000


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("single",)])
def test_every_ensemble_is_more_accurate_than_the_single_model_on_fresh_images(
    method: Method, fitted: tuple[Pool, Pool, dict[Method, Ensemble]]
) -> None:
    _, fresh, ensembles = fitted

    single = accuracy(ensembles["single"].predict(fresh), fresh.labels)

    assert accuracy(ensembles[method].predict(fresh), fresh.labels) > single + 0.02


@pytest.mark.parametrize("method", [method for method in METHODS if "vote" not in method])
def test_a_temperature_never_raises_the_log_loss_of_the_fitting_images_by_much(
    method: Method, fitted: tuple[Pool, Pool, dict[Method, Ensemble]]
) -> None:
    pool, _, ensembles = fitted
    best = pool.log_losses().min()

    assert log_loss(ensembles[method].predict(pool), pool.labels) < best


def test_the_log_linear_pool_and_votes_have_no_temperature_of_their_own(
    fitted: tuple[Pool, Pool, dict[Method, Ensemble]],
) -> None:
    _, _, ensembles = fitted

    plain = {name for name, each in ensembles.items() if each.combination.temperature == 1.0}
    assert plain == {"vote", "weighted_vote", "llp", "stack"}


@pytest.mark.parametrize("method", METHODS)
def test_a_permuted_pool_gives_the_same_members_by_name(
    method: Method, fitted: tuple[Pool, Pool, dict[Method, Ensemble]]
) -> None:
    pool, fresh, ensembles = fitted
    permuted = pool.select(np.random.default_rng(1).permutation(pool.n_models))

    ensemble = build(permuted, method=method)

    if method == "bagged_greedy":  # its bags are drawn by position
        return
    assert set(ensemble.names) == set(ensembles[method].names)
    np.testing.assert_allclose(
        ensemble.predict(fresh), ensembles[method].predict(fresh), atol=0.02
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_ensemble_of_copies_is_as_accurate_as_the_copy(
    method: Method, random_pool: RandomPool
) -> None:
    copies = random_pool(n_models=1, n_images=600).select([0])
    copies = Pool.from_arrays(
        log_probabilities=np.repeat(copies.log_probabilities, 3, axis=0), labels=copies.labels
    )

    ensemble = build(copies, method=method)

    if method == "stack":  # it may trust classes differently
        return
    np.testing.assert_array_equal(
        ensemble.predict(copies).argmax(axis=1), copies.log_probabilities[0].argmax(axis=1)
    )


@pytest.mark.parametrize("method", [method for method in METHODS if method != "stack"])
def test_a_pool_of_one_model_and_one_image_gives_that_model(method: Method) -> None:
    pool = Pool.from_arrays(probabilities=np.array([[[0.7, 0.3]]]), labels=np.array([0]))

    ensemble = build(pool, method=method)

    assert ensemble.members == (0,)
    assert ensemble.predict(pool).argmax() == 0


def test_only_the_best_candidates_are_seen() -> None:
    right = np.full((MAX_CANDIDATES + 6, 4), 0.6)
    right[:6] = 0.1
    # Each of the six bad models knows one image that no other does.
    right[0, 0] = 0.99
    pool = Pool.from_arrays(
        probabilities=np.stack([right, 1 - right], axis=2), labels=np.zeros(4, dtype=np.int64)
    )

    assert build(pool, method="greedy").members[0] == 6


def test_the_rule_follows_the_errors_of_the_best_model(
    pool_of: Callable[[Sequence[Sequence[float]]], Pool],
) -> None:
    def pool_with_errors(n_errors: int) -> Pool:
        return pool_of([[0.4] * n_errors + [0.9] * 100, [0.3] * 100 + [0.6] * n_errors])

    assert count_best_errors(pool_with_errors(49)) == 49
    assert choose_method(pool_with_errors(49)) == "bagged_greedy"
    assert choose_method(pool_with_errors(50)) == "llp"
    assert build(pool_with_errors(49)).method == "bagged_greedy"
    assert build(pool_with_errors(50)).method == "llp"
    enough = pool_of([[0.4] * 50 + [0.9] * 350, [0.3] * 100 + [0.6] * 300])
    assert choose_method(enough) == "stack"
    assert choose_method(enough.select_images(np.arange(399))) == "llp"


def test_stacking_is_left_out_below_the_images_it_needs(random_pool: RandomPool) -> None:
    pool = random_pool(n_images=499)

    assert "stack" not in build_all(pool)
    assert explain_refusal(pool, "llp") is None
    with pytest.raises(EnsembleError, match="needs at least 500 images to fit on, got 499"):
        build(pool, method="stack")


def test_a_limit_of_one_member_gives_one_member(random_pool: RandomPool) -> None:
    pool = random_pool(n_images=600)

    ensembles = build_all(pool, max_members=1)

    assert {len(ensemble.members) for ensemble in ensembles.values()} == {1}


def test_a_limit_of_no_members_is_refused(random_pool: RandomPool) -> None:
    with pytest.raises(EnsembleError, match="max_members must be at least 1, got 0"):
        build(random_pool(), max_members=0)


def test_predictions_of_a_missing_member_are_refused(random_pool: RandomPool) -> None:
    pool = random_pool()
    ensemble = build(pool, method="soft")

    with pytest.raises(EnsembleError, match="no predictions of"):
        ensemble.predict(pool.select([ensemble.members[0]]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("maximum", [1.0, 4.0, 10.0])
def test_no_ensemble_costs_more_than_its_limit(
    method: Method, maximum: float, fitted: tuple[Pool, Pool, dict[Method, Ensemble]]
) -> None:
    pool, _, _ = fitted
    costs = tuple(float(12 - number) for number in range(12))  # the best are the dearest

    ensemble = build(
        pool, method=method, limits=[Limit(name="time in ms", costs=costs, maximum=maximum)]
    )

    assert 0 < sum(costs[member] for member in ensemble.members) <= maximum


@pytest.mark.parametrize("method", METHODS)
def test_a_limit_that_nothing_reaches_changes_nothing(
    method: Method, fitted: tuple[Pool, Pool, dict[Method, Ensemble]]
) -> None:
    pool, _, ensembles = fitted
    limit = Limit(name="time in ms", costs=(1.0,) * 12, maximum=5.0)

    assert build(pool, method=method, limits=[limit]) == ensembles[method]


def test_a_limit_below_the_cheapest_model_is_refused(
    fitted: tuple[Pool, Pool, dict[Method, Ensemble]],
) -> None:
    pool, _, _ = fitted
    cheap = Limit(name="time in ms", costs=(2.0,) * 12, maximum=1.5)
    few = Limit(name="size in MB", costs=(2.0,), maximum=5.0)

    with pytest.raises(EnsembleError, match=r"no model fits time in ms of at most 1.5.* needs 2"):
        build(pool, limits=[cheap])
    with pytest.raises(EnsembleError, match="one cost for each of 12 models, got 1"):
        build(pool, limits=[few])
    with pytest.raises(EnsembleError, match="maximum above 0"):
        Limit(name="size in MB", costs=(1.0,), maximum=0.0)


def test_votes_are_weighed_by_their_odds() -> None:
    labels = np.zeros(98, dtype=np.int64)
    right = np.full((2, 98), 0.9)
    right[0, :9] = right[1, :24] = 0.1
    pool = Pool.from_arrays(probabilities=np.stack([right, 1 - right], axis=2), labels=labels)

    ensemble = build(pool, method="weighted_vote")

    # With one image of each outcome added: 90 and 75 of 100 right, odds of 9 and of 3.
    expected = np.log([9, 3]) / np.log([9, 3]).sum()
    np.testing.assert_allclose(ensemble.combination.weights, expected)


def test_the_single_model_is_the_best_after_a_temperature_of_its_own() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=2000)
    logits = (
        generator.normal(size=(2, 2000, 3))
        + np.array([2.0, 2.5])[:, None, None] * np.eye(3)[labels]
    )
    logits[0] *= 2.0  # about as sure as it may be
    logits[1] *= 0.3  # the better one, as unsure as label smoothing makes it
    pool = Pool.from_arrays(logits=logits, labels=labels, names=["sure", "better"])

    assert pool.log_losses()[0] < pool.log_losses()[1]
    assert build(pool, method="single").names == ("better",)


def with_soups(pool: Pool, *soups: int) -> Pool:
    """Return a pool some of whose models are averages of weights by their names."""
    names = list(pool.names)
    for index in soups:
        names[index] = f"soup-{index}"
    return replace(pool, names=tuple(names))


def test_a_soup_is_the_best_of_the_averages_with_a_temperature(
    fitted: tuple[Pool, Pool, dict[Method, Ensemble]],
) -> None:
    pool, _, ensembles = fitted
    losses = [log_loss_after_temperature(each, pool.labels) for each in pool.log_probabilities]
    best, second, third = (int(index) for index in np.argsort(losses)[:3])

    ensemble = build(with_soups(pool, third, second), method="soup")

    assert ensembles["single"].members == (best,)
    assert ensemble.names == (f"soup-{second}",)
    assert ensemble.combination.temperature != 1.0


def test_a_soup_need_not_be_among_the_best_candidates(random_pool: RandomPool) -> None:
    pool = random_pool(n_models=MAX_CANDIDATES + 1, n_images=100)
    worst = int(pool.log_losses().argmax())

    ensemble = build(with_soups(pool, worst), method="soup")

    assert ensemble.members == (worst,)


def test_a_soup_that_is_not_there_or_costs_too_much_is_refused(random_pool: RandomPool) -> None:
    pool = random_pool(n_models=3)
    soupy = with_soups(pool, 1)
    limit = Limit(name="time in ms", costs=(1.0, 2.0, 1.0), maximum=1.5)

    assert "soup" not in build_all(pool)
    assert build_all(soupy)["soup"].members == (1,)
    assert "soup" not in build_all(soupy, limits=[limit])
    assert explain_refusal(soupy, "soup", [limit]) == "soup: none fits the limits."
    with pytest.raises(EnsembleError, match="no model is an average of weights; the name of one"):
        build(pool, method="soup")


def test_selection_by_accuracy_is_fitted_where_it_is_asked_for(random_pool: RandomPool) -> None:
    pool = random_pool(n_models=10)

    ensemble = build(pool, method="greedy_accuracy", max_members=3)

    by_loss = build(pool, method="greedy", max_members=3)
    errors = [
        (each.predict(pool).argmax(axis=1) != pool.labels).sum() for each in (ensemble, by_loss)
    ]
    assert "greedy_accuracy" not in build_all(pool)
    assert len(ensemble.names) <= 3
    assert errors[0] <= errors[1]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"method": "nonsense"}, "method must be one of auto, single, .* got 'nonsense'"),
        ({"max_members": 1.5}, r"max_members must be a whole number, got 1\.5"),
    ],
)
def test_a_wish_that_nobody_can_fulfil_is_refused(
    random_pool: Callable[..., Pool], wish: dict[str, Any], message: str
) -> None:
    with pytest.raises(EnsembleError, match=message):
        build(random_pool(n_models=2, n_images=20), **wish)

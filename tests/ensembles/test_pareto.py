import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from ensembles.builder import build
from ensembles.comparison import find_wilson_interval
from ensembles.errors import EnsembleError
from ensembles.metrics import accuracy, log_loss
from ensembles.pareto import Front, find_front
from ensembles.pool import Pool

RandomPool = Callable[..., Pool]
COSTS: Mapping[str, Sequence[float]] = {
    "milliseconds": [2.0, 1.0, 4.0, 3.0, 2.0, 1.0, 5.0, 2.0],
    "bytes": [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0],
}


@pytest.fixture
def pools(random_pool: RandomPool) -> tuple[Pool, Pool]:
    """Return images to fit on, and others."""
    pool = random_pool(n_models=8, n_images=1200)
    rows = np.arange(1200)
    return pool.select_images(rows[:600]), pool.select_images(rows[600:])


def test_each_ensemble_keeps_to_its_budget_and_beats_all_cheaper_ones(
    pools: tuple[Pool, Pool],
) -> None:
    front = find_front(pools[0], COSTS, test_pool=pools[1])

    assert len(front.points) >= 3
    assert all(point.cost <= point.budget * (1 + 1e-9) for point in front.points)
    costs = [point.cost for point in front.points]
    losses = [point.fitted_log_loss for point in front.points]
    assert costs == sorted(set(costs))
    assert losses == sorted(set(losses), reverse=True)


def test_costs_are_those_of_the_members_together(pools: tuple[Pool, Pool]) -> None:
    front = find_front(pools[0], COSTS, test_pool=pools[1])

    single = build(pools[0], method="single")
    assert front.single == single.names[0]
    assert front.single_cost == COSTS["milliseconds"][single.members[0]]
    for point in front.points:
        milliseconds = sum(COSTS["milliseconds"][member] for member in point.ensemble.members)
        size = sum(COSTS["bytes"][member] for member in point.ensemble.members)
        assert point.totals == {"milliseconds": milliseconds, "bytes": size}
        assert point.cost == pytest.approx(milliseconds / front.single_cost)


def test_figures_are_of_the_images_that_nothing_was_fitted_on(pools: tuple[Pool, Pool]) -> None:
    fit_pool, test_pool = pools

    front = find_front(fit_pool, COSTS, test_pool=test_pool)

    assert front.n_images == 600
    for point in front.points:
        predicted = point.ensemble.predict(test_pool)
        assert point.accuracy == accuracy(predicted, test_pool.labels)
        assert point.log_loss == log_loss(predicted, test_pool.labels)
        n_right = int((predicted.argmax(axis=1) == test_pool.labels).sum())
        assert point.accuracy_interval == find_wilson_interval(n_right, 600)


def test_other_images_do_not_change_which_ensembles_are_kept(pools: tuple[Pool, Pool]) -> None:
    fit_pool, test_pool = pools

    fronts = [
        find_front(fit_pool, COSTS, test_pool=each)
        for each in (test_pool, test_pool.select_images(np.arange(50)))
    ]

    ensembles = [[point.ensemble for point in front.points] for front in fronts]
    assert ensembles[0] == ensembles[1]


def test_the_first_resource_is_the_one_that_is_limited(pools: tuple[Pool, Pool]) -> None:
    by_size = {name: COSTS[name] for name in ("bytes", "milliseconds")}

    front = find_front(pools[0], by_size, test_pool=pools[1], budgets=[1.0, 2.0])

    assert front.resource == "bytes"
    for point in front.points:
        assert point.totals["bytes"] <= point.budget * front.single_cost


def test_a_dear_ensemble_that_is_no_better_is_dropped() -> None:
    copies = np.random.default_rng(0).dirichlet(np.ones(3), size=300)
    labels = copies.argmax(axis=1)
    pool = Pool.from_arrays(probabilities=[copies] * 4, labels=labels)

    front = find_front(
        pool, {"milliseconds": [1.0, 2.0, 3.0, 4.0]}, test_pool=pool, method="simplex"
    )

    assert [point.ensemble.names for point in front.points] == [("0",)]


def test_equal_ensembles_of_several_budgets_count_under_the_smallest(
    pools: tuple[Pool, Pool],
) -> None:
    front = find_front(pools[0], COSTS, test_pool=pools[1], budgets=[100.0, 50.0], method="llp")

    assert [point.budget for point in front.points] == [50.0]


def test_a_front_survives_json(pools: tuple[Pool, Pool]) -> None:
    front = find_front(pools[0], COSTS, test_pool=pools[1], budgets=[1.0, 3.0])

    assert Front.from_json(json.loads(json.dumps(front.to_json()))) == front
    with pytest.raises(EnsembleError, match="no front of ensembles"):
        Front.from_json({"points": []})


@pytest.mark.parametrize(
    ("costs", "budgets", "message"),
    [
        ({}, [1.0], "at least one resource"),
        ({"bytes": [1.0]}, [1.0], "bytes: a pool of 8 needs 8 finite costs above 0"),
        ({"bytes": [0.0] * 8}, [1.0], "bytes: a pool of 8 needs 8 finite costs above 0"),
        ({"bytes": [float("inf")] * 8}, [1.0], "8 finite costs above 0"),
        (COSTS, [], "needs budgets above 0"),
        (COSTS, [-1.0], "needs budgets above 0"),
        (COSTS, [0.01], "no model fits milliseconds of at most"),
    ],
)
def test_costs_and_budgets_that_cannot_be_used_are_refused(
    pools: tuple[Pool, Pool],
    costs: Mapping[str, Sequence[float]],
    budgets: Sequence[float],
    message: str,
) -> None:
    with pytest.raises(EnsembleError, match=message):
        find_front(pools[0], costs, test_pool=pools[1], budgets=budgets)


def test_votes_are_refused(pools: tuple[Pool, Pool]) -> None:
    with pytest.raises(EnsembleError, match="votes have no log-loss"):
        find_front(pools[0], COSTS, test_pool=pools[1], method="vote")

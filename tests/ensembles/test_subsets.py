import numpy as np
from scipy.optimize import nnls

from ensembles.budget import Budget, Limit
from ensembles.subsets import SubsetFit, SubsetSearch

TARGET = np.array([0.0, 3.0, -1.0, 2.0, 1e-7])


def fit(members: list[int]) -> SubsetFit:
    """Bring the members, where at least 0, to the target; the rest stay at 0."""
    weights = np.maximum(TARGET[members], 0)
    rest = np.delete(TARGET, members)
    loss = float(rest @ rest + np.square(weights - TARGET[members]).sum()) / 2
    return SubsetFit(members=members, weights=weights, loss=loss)


def slopes(fitted: SubsetFit) -> np.ndarray:
    difference: np.ndarray = fitted.scattered(5) - TARGET
    return difference


def searching(max_members: int, *limits: Limit) -> SubsetSearch:
    budget = Budget(max_members=max_members, limits=limits)
    return SubsetSearch(fit=fit, slopes=slopes, budget=budget)


def test_the_models_that_lower_the_loss_most_come_first() -> None:
    assert searching(1).forward([fit([])]).members == [1]
    assert searching(2).forward([fit([])]).members == [1, 3]


def test_growing_stops_when_no_slope_is_worth_a_member() -> None:
    assert searching(5).forward([fit([])]).members == [1, 3]


def test_a_member_whose_weight_falls_to_zero_makes_room() -> None:
    grown = searching(2).forward([fit([2])])

    assert grown.members == [1, 3]
    np.testing.assert_array_equal(grown.scattered(5), [0, 3, 0, 2, 0])


def test_growing_stops_when_a_fit_is_no_better() -> None:
    def flat(members: list[int]) -> SubsetFit:
        return SubsetFit(members=members, weights=np.ones(len(members)), loss=1.0)

    search = SubsetSearch(fit=flat, slopes=slopes, budget=Budget(max_members=3))

    assert search.forward([flat([0])]).members == [0]


def test_a_first_member_that_the_last_ones_replace_is_exchanged() -> None:
    # The first column alone is nearest to the target, the other two together reach it.
    columns = np.array([[0.8, 0.8, 0.4], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).T
    target = np.array([1.0, 1.0, 0.0])

    def fit_columns(members: list[int]) -> SubsetFit:
        weights, residual = nnls(columns[:, members], target) if members else (np.zeros(0), 2**0.5)
        return SubsetFit(members=members, weights=weights, loss=residual**2 / 2)

    def slopes_of(fitted: SubsetFit) -> np.ndarray:
        slopes: np.ndarray = columns.T @ (columns @ fitted.scattered(3) - target)
        return slopes

    first = fit_columns([])
    one, two = (
        SubsetSearch(
            fit=fit_columns, slopes=slopes_of, budget=Budget(max_members=max_members)
        ).forward([first])
        for max_members in (1, 2)
    )

    assert one.members == [0]
    assert sorted(two.members) == [1, 2]
    np.testing.assert_allclose(two.scattered(3), [0, 1, 1])


def test_the_members_that_are_missed_least_are_dropped_first() -> None:
    full = fit(list(range(5)))

    assert searching(5).backward(full).members == [1, 3, 4]
    assert searching(2).backward(full).members == [1, 3]
    assert searching(1).backward(full).members == [1]


def test_members_are_dropped_until_they_fit_every_limit() -> None:
    limit = Limit(name="size", costs=(1.0, 5.0, 1.0, 2.0, 1.0), maximum=4.0)
    cheaper = Limit(name="size", costs=(1.0, 3.0, 1.0, 2.0, 1.0), maximum=4.0)

    kept = searching(5, limit).backward(fit([3, 4]))
    exchanged = searching(5, cheaper).backward(fit([3, 4]))

    assert sorted(kept.members) == [3, 4]
    assert sorted(exchanged.members) == [1, 4]

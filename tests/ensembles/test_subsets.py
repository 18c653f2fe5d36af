import numpy as np
from scipy.optimize import nnls

from ensembles.budget import Limit
from ensembles.subsets import SubsetFit, select_backward, select_forward

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


def test_the_models_that_lower_the_loss_most_come_first() -> None:
    assert select_forward([fit([])], fit, slopes, max_members=1).members == [1]
    assert select_forward([fit([])], fit, slopes, max_members=2).members == [1, 3]


def test_growing_stops_when_no_slope_is_worth_a_member() -> None:
    assert select_forward([fit([])], fit, slopes, max_members=5).members == [1, 3]


def test_a_member_whose_weight_falls_to_zero_makes_room() -> None:
    grown = select_forward([fit([2])], fit, slopes, max_members=2)

    assert grown.members == [1, 3]
    np.testing.assert_array_equal(grown.scattered(5), [0, 3, 0, 2, 0])


def test_growing_stops_when_a_fit_is_no_better() -> None:
    def flat(members: list[int]) -> SubsetFit:
        return SubsetFit(members=members, weights=np.ones(len(members)), loss=1.0)

    assert select_forward([flat([0])], flat, slopes, max_members=3).members == [0]


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
    one = select_forward([first], fit_columns, slopes_of, max_members=1)
    two = select_forward([first], fit_columns, slopes_of, max_members=2)

    assert one.members == [0]
    assert sorted(two.members) == [1, 2]
    np.testing.assert_allclose(two.scattered(3), [0, 1, 1])


def test_the_members_that_are_missed_least_are_dropped_first() -> None:
    full = fit(list(range(5)))

    assert select_backward(full, fit, slopes, max_members=5).members == [1, 3, 4]
    assert select_backward(full, fit, slopes, max_members=2).members == [1, 3]
    assert select_backward(full, fit, slopes, max_members=1).members == [1]


def test_members_are_dropped_until_they_fit_every_limit() -> None:
    limit = Limit(name="size", costs=(1.0, 5.0, 1.0, 2.0, 1.0), maximum=4.0)
    cheaper = Limit(name="size", costs=(1.0, 3.0, 1.0, 2.0, 1.0), maximum=4.0)

    kept = select_backward(fit([3, 4]), fit, slopes, max_members=5, limits=[limit])
    exchanged = select_backward(fit([3, 4]), fit, slopes, max_members=5, limits=[cheaper])

    assert sorted(kept.members) == [3, 4]
    assert sorted(exchanged.members) == [1, 4]

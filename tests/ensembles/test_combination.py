import json
from typing import Any

import numpy as np
import pytest

from ensembles.combination import Combination, Space
from ensembles.errors import EnsembleError

MEMBERS = np.log(np.array([[[0.8, 0.2]], [[0.4, 0.6]]]))
STACK = Combination(
    method="stack",
    space="stack",
    weights=(0.5, 0.5),
    class_weights=((1.0, 0.5), (0.25, -0.5)),
    class_biases=(0.1, -0.1),
)


def make(space: Space, weights: tuple[float, ...] = (0.5, 0.5), **more: Any) -> Combination:
    return Combination(method="soft", space=space, weights=weights, **more)


def test_probabilities_are_averaged() -> None:
    combined = make("probability", (0.75, 0.25)).combine(MEMBERS)

    np.testing.assert_allclose(np.exp(combined), [[0.7, 0.3]], rtol=1e-6)


def test_logarithms_are_added_and_normalized() -> None:
    combined = make("logarithm", (1.0, 2.0)).combine(MEMBERS)

    first, second = 0.8 * 0.4**2, 0.2 * 0.6**2
    np.testing.assert_allclose(np.exp(combined), np.array([[first, second]]) / (first + second))


def test_a_temperature_of_two_takes_square_roots() -> None:
    combined = make("probability", (1.0, 0.0), temperature=2.0).combine(MEMBERS)

    assert np.exp(combined[0, 0] - combined[0, 1]) == pytest.approx(2)


def test_votes_are_shares_of_the_members() -> None:
    three = np.log(np.array([[[0.6, 0.3, 0.1]], [[0.6, 0.3, 0.1]], [[0.05, 0.9, 0.05]]]))

    combined = make("vote", (1 / 3, 1 / 3, 1 / 3)).combine(three)

    np.testing.assert_allclose(np.exp(combined), [[2 / 3, 1 / 3, 0]], atol=1e-3)
    # the mean probability prefers class 1, but it only breaks ties
    assert combined.argmax() == 0


def test_tied_votes_go_to_the_class_of_higher_mean_probability() -> None:
    two = np.log(np.array([[[0.6, 0.4]], [[0.1, 0.9]]]))

    assert make("vote").combine(two).argmax() == 1


def test_votes_tied_in_all_go_to_the_lowest_class() -> None:
    two = np.log(np.array([[[0.25, 0.75]], [[0.75, 0.25]]]))

    assert make("vote").combine(two).argmax() == 0


def test_stacking_weighs_each_class_of_each_member() -> None:
    combined = STACK.combine(MEMBERS)

    first = np.log(0.8) + 0.25 * np.log(0.4) + 0.1
    second = 0.5 * np.log(0.2) - 0.5 * np.log(0.6) - 0.1
    assert combined[0, 0] - combined[0, 1] == pytest.approx(first - second)


@pytest.mark.parametrize("space", ["probability", "logarithm"])
def test_copies_of_a_member_combine_to_that_member(space: Space) -> None:
    copies = np.repeat(MEMBERS[:1], 4, axis=0)

    combined = make(space, (0.25,) * 4).combine(copies)

    np.testing.assert_allclose(combined, MEMBERS[0], rtol=1e-6)


@pytest.mark.parametrize("space", ["probability", "logarithm", "vote"])
def test_impossible_classes_give_finite_logarithms_that_sum_to_one(space: Space) -> None:
    sure = np.array([[[0.0, -1e6, -1e6]], [[-1e6, 0.0, -1e6]]])

    combined = make(space).combine(sure)

    assert np.isfinite(combined).all()
    assert np.exp(combined).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "combination",
    [make("probability", (0.1, 0.9), temperature=1 / 3), make("logarithm", (1 / 7, 2.2)), STACK],
)
def test_a_combination_read_from_json_text_predicts_the_same_bits(
    combination: Combination,
) -> None:
    read = Combination.from_json(json.loads(json.dumps(combination.to_json())))

    assert read == combination
    np.testing.assert_array_equal(read.combine(MEMBERS), combination.combine(MEMBERS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": [1.0]}, "shares"),
        ({"space": "prob"}, "space"),
        ({"weights": ["1.0", "0.0"]}, "weights"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": {1, 2}}, "not JSON serializable"),
        ({"weights": [0.5, 0.6]}, "must sum to 1"),
    ],
)
def test_json_that_is_no_combination_is_refused(change: dict[str, object], message: str) -> None:
    values = make("probability").to_json() | change

    with pytest.raises(EnsembleError, match=message):
        Combination.from_json(values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": ()}, "at least 0, not all 0"),
        ({"weights": (1.5, -0.5)}, "at least 0, not all 0"),
        ({"weights": (0.0, 0.0)}, "at least 0, not all 0"),
        ({"weights": (np.inf, 0.0)}, "finite"),
        ({"weights": (0.5, 0.4)}, "must sum to 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"class_biases": (0.0, 0.0)}, "stacking alone"),
        ({"space": "stack"}, "one bias per class"),
    ],
)
def test_numbers_that_no_fit_returns_are_refused(fields: dict[str, Any], message: str) -> None:
    plain: dict[str, Any] = {"method": "soft", "space": "probability", "weights": (0.5, 0.5)}

    with pytest.raises(EnsembleError, match=message):
        Combination(**plain | fields)


def test_another_number_of_members_is_refused() -> None:
    with pytest.raises(EnsembleError, match="has 2 members, got predictions of 1"):
        make("probability").combine(MEMBERS[:1])


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(EnsembleError, match="has 2 classes, got predictions for 3"):
        STACK.combine(np.zeros((2, 1, 3)))


def test_a_selection_combines_the_members_in_its_own_order() -> None:
    predictions = np.log(np.array([[[0.9, 0.1]], [[0.5, 0.5]], [[0.2, 0.8]]]))
    plain = Combination(method="greedy", space="probability", weights=(0.75, 0.0, 0.25))
    stacked = Combination(
        method="stack",
        space="stack",
        weights=(1.0, 0.0, 1.0),
        class_weights=((1.0, 2.0), (0.0, 0.0), (-1.0, 0.5)),
        class_biases=(0.1, -0.1),
    )

    for whole in (plain, stacked):
        chosen = whole.select((2, 0))
        assert chosen.weights == (whole.weights[2], whole.weights[0])
        np.testing.assert_allclose(chosen.combine(predictions[[2, 0]]), whole.combine(predictions))


def test_a_selection_that_leaves_weight_out_is_refused() -> None:
    plain = Combination(method="greedy", space="probability", weights=(0.75, 0.25))

    with pytest.raises(EnsembleError, match=r"must sum to 1, got 0.75"):
        plain.select((0,))


@pytest.mark.parametrize("space", ["probability", "logarithm"])
def test_networks_behind_members_predict_what_their_means_do(space: Space) -> None:
    networks = np.log(np.random.default_rng(1).dirichlet(np.ones(2), size=(4, 5)))
    of_means = make(space, (0.75, 0.25), temperature=1.5)
    first, second = networks[:3], networks[3:]  # means of three networks and of one
    if space == "probability":
        means = np.stack([np.log(np.exp(each).mean(axis=0)) for each in (first, second)])
    else:
        means = np.stack([each.mean(axis=0) for each in (first, second)])

    spread = of_means.spread([3, 1])

    assert spread.n_members == 4
    assert sum(spread.weights) == pytest.approx(1)
    np.testing.assert_allclose(spread.combine(networks), of_means.combine(means), atol=1e-9)


def test_a_stack_weighs_the_mean_logarithms_of_the_networks_behind_a_member() -> None:
    networks = np.log(np.random.default_rng(1).dirichlet(np.ones(2), size=(4, 5)))

    combined = STACK.spread([3, 1]).combine(networks)

    scores = [0.1, -0.1] + np.array([1.0, 0.5]) * networks[:3].mean(axis=0)
    scores = scores + np.array([0.25, -0.5]) * networks[3]
    expected = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(combined, expected, atol=1e-6)


def test_the_vote_of_a_member_is_shared_among_its_networks() -> None:
    sure, other = [[0.9, 0.1]], [[0.2, 0.8]]
    networks = np.log(np.array([sure, other, other, sure]))

    shares = np.exp(make("vote", (0.6, 0.4)).spread([3, 1]).combine(networks))

    np.testing.assert_allclose(shares, [[0.2 + 0.4, 0.4]], atol=1e-3)

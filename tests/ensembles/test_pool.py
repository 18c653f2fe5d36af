from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ensembles.errors import EnsembleError
from ensembles.pool import Pool, normalize_log_probabilities, split_in_folds

LABELS = np.array([0, 1])
PROBABILITIES = np.array([[[0.75, 0.25], [0.5, 0.5]]])


def test_probabilities_their_logarithms_and_logits_make_the_same_pool() -> None:
    logarithms = np.log(PROBABILITIES)

    pools = [
        Pool.from_arrays(probabilities=PROBABILITIES, labels=LABELS),
        Pool.from_arrays(log_probabilities=logarithms, labels=LABELS),
        Pool.from_arrays(logits=logarithms + 7, labels=LABELS),
    ]

    for pool in pools:
        np.testing.assert_allclose(np.exp(pool.log_probabilities), PROBABILITIES, rtol=1e-6)


def test_half_precision_predictions_are_normalized_again() -> None:
    generator = np.random.default_rng(0)
    halves = np.log(generator.dirichlet(np.ones(100), size=(2, 30))).astype(np.float16)

    pool = Pool.from_arrays(log_probabilities=halves, labels=np.zeros(30, dtype=np.int64))

    assert pool.log_probabilities.dtype == np.float32
    np.testing.assert_allclose(np.exp(pool.log_probabilities).sum(axis=2), 1, atol=1e-5)


def test_a_probability_of_zero_becomes_the_least_logarithm() -> None:
    pool = Pool.from_arrays(probabilities=np.array([[[1.0, 0.0]]]), labels=np.array([1]))

    assert pool.log_probabilities[0, 0, 1] == pytest.approx(-30)
    assert pool.true_class()[0, 0] == pytest.approx(1e-7)
    assert pool.log_losses()[0] == pytest.approx(30)


def test_normalizing_twice_changes_nothing() -> None:
    values = np.array([[0.0, -100.0, 3.0], [1.0, 1.0, 1.0]])

    once = normalize_log_probabilities(values)

    np.testing.assert_allclose(normalize_log_probabilities(once), once, atol=1e-12)


def test_names_costs_and_class_names_have_plain_defaults() -> None:
    pool = Pool.from_arrays(probabilities=PROBABILITIES, labels=LABELS)

    assert pool.names == ("0",)
    assert pool.class_names == ("0", "1")
    assert pool.costs.tolist() == [1.0]
    assert (pool.n_models, pool.n_images, pool.n_classes) == (1, 2, 2)


def test_selected_models_keep_their_names_and_costs(
    pool_of: Callable[[Sequence[Sequence[float]]], Pool],
) -> None:
    plain = pool_of([[0.9], [0.8], [0.7]])
    pool = Pool.from_arrays(
        log_probabilities=plain.log_probabilities,
        labels=plain.labels,
        names=["a", "b", "c"],
        costs=[1, 2, 3],
    )

    chosen = pool.select_names(["c", "a"])

    assert chosen.names == ("c", "a")
    assert chosen.costs.tolist() == [3, 1]
    np.testing.assert_allclose(chosen.true_class(), [[0.7], [0.9]], rtol=1e-6)


def test_selected_images_keep_their_labels(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool()

    part = pool.select_images(np.array([5, 3]))

    np.testing.assert_array_equal(part.labels, pool.labels[[5, 3]])
    np.testing.assert_array_equal(part.true_class(), pool.true_class()[:, [5, 3]])


def test_the_true_class_lies_in_memory_model_by_model(random_pool: Callable[..., Pool]) -> None:
    assert random_pool().true_class().flags.c_contiguous


def test_an_unknown_name_is_refused(random_pool: Callable[..., Pool]) -> None:
    with pytest.raises(EnsembleError, match="no predictions of 99"):
        random_pool().select_names(["1", "99"])


@pytest.mark.parametrize("given", [{}, {"logits": PROBABILITIES, "probabilities": PROBABILITIES}])
def test_predictions_in_none_or_two_forms_are_refused(given: dict[str, np.ndarray]) -> None:
    with pytest.raises(EnsembleError, match="exactly one of probabilities"):
        Pool.from_arrays(labels=LABELS, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "at least one model"),
        ([np.zeros(3)], r"shape \(images, classes\)"),
        ([np.zeros((2, 1))], "2 classes"),
        ([np.zeros((2, 2)), np.zeros((3, 2))], "same images and classes"),
        ([np.zeros((2, 2), dtype=np.int64)], "floating-point"),
        ([np.array([[np.nan, 0.0], [0.0, 0.0]])], "model 0: logits of 1 of 2 images are not fin"),
        ([np.array([[np.inf, 0.0], [0.0, 0.0]])], "not finite"),
    ],
)
def test_predictions_that_no_model_makes_are_refused(
    models: list[np.ndarray], message: str
) -> None:
    with pytest.raises(EnsembleError, match=message):
        Pool.from_arrays(logits=models, labels=LABELS)


def test_negative_probabilities_are_refused() -> None:
    with pytest.raises(EnsembleError, match=r"negative, -0\.5"):
        Pool.from_arrays(probabilities=np.array([[[1.5, -0.5]]]), labels=np.array([0]))


def test_logits_given_as_logarithms_are_refused_with_advice() -> None:
    with pytest.raises(EnsembleError, match="outputs before softmax go into logits"):
        Pool.from_arrays(log_probabilities=np.array([[[3.0, 200.0]]]), labels=np.array([0]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 1]), "2 whole numbers"),
        (np.array([0.0, 1.0]), "whole numbers"),
        (np.array([0, 2]), "between 0 and 1, got 0 to 2"),
        (np.array([-1, 0]), "between 0 and 1, got -1 to 0"),
    ],
)
def test_labels_that_fit_no_prediction_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(EnsembleError, match=message):
        Pool.from_arrays(probabilities=PROBABILITIES, labels=labels)


def test_names_that_are_not_one_per_model_are_refused() -> None:
    two = np.repeat(PROBABILITIES, 2, axis=0)
    with pytest.raises(EnsembleError, match="2 different model names, got a, a"):
        Pool.from_arrays(probabilities=two, labels=LABELS, names=["a", "a"])
    with pytest.raises(EnsembleError, match="2 different class names, got cat"):
        Pool.from_arrays(probabilities=two, labels=LABELS, class_names=["cat"])


@pytest.mark.parametrize("costs", [[0.0], [np.nan], [1.0, 1.0]])
def test_costs_that_are_not_positive_numbers_are_refused(costs: list[float]) -> None:
    with pytest.raises(EnsembleError, match="1 finite costs above 0"):
        Pool.from_arrays(probabilities=PROBABILITIES, labels=LABELS, costs=costs)


def test_folds_share_every_class_evenly() -> None:
    labels = np.repeat([0, 1, 2], [50, 25, 5])

    folds = split_in_folds(labels, n_folds=5, seed=0)

    for label, share in ((0, 10), (1, 5), (2, 1)):
        assert np.bincount(folds[labels == label], minlength=5).tolist() == [share] * 5


@pytest.mark.parametrize(("geometrically", "expected"), [(False, 0.23), (True, 0.2)])
def test_a_pool_of_means(*, geometrically: bool, expected: float) -> None:
    chances = np.array([[[0.9, 0.1]], [[0.1, 0.9]], [[0.36, 0.64]]])
    pool = Pool.from_arrays(
        probabilities=chances, labels=np.array([0]), names=["a", "b", "c"], costs=[1.0, 2.0, 4.0]
    )

    means = pool.average({"x": ["a", "b"], "y": ["b", "c"]}, geometrically=geometrically)

    assert means.names == ("x", "y")
    assert means.costs.tolist() == [3.0, 6.0]
    np.testing.assert_allclose(np.exp(means.log_probabilities[0, 0]), [0.5, 0.5], rtol=1e-6)
    # of 0.1 and 0.36, against 0.9 and 0.64: the roots of the products are 0.19 and 0.76
    assert np.exp(means.log_probabilities[1, 0, 0]) == pytest.approx(expected)


def test_labels_may_be_a_list_and_names_may_be_numbers() -> None:
    pool = Pool.from_arrays(
        probabilities=np.repeat(PROBABILITIES, 2, axis=0), labels=[0, 1], names=[7, 12]
    )

    assert pool.labels.tolist() == [0, 1]
    assert pool.names == ("7", "12")


def test_the_logarithm_of_a_hard_zero_is_taken_as_never() -> None:
    logarithms = np.array([[[0.0, -np.inf]]])

    pool = Pool.from_arrays(log_probabilities=logarithms, labels=[1])

    assert pool.log_probabilities[0, 0].tolist() == pytest.approx([0, -30])
    assert logarithms[0, 0, 1] == -np.inf
    with pytest.raises(EnsembleError, match="sum to probability 1"):
        Pool.from_arrays(log_probabilities=np.full((1, 1, 2), -np.inf), labels=[1])
    with pytest.raises(EnsembleError, match="not finite"):
        Pool.from_arrays(log_probabilities=np.array([[[np.nan, 0.0]]]), labels=[1])


def test_a_probability_that_rounding_brought_below_zero_is_zero() -> None:
    pool = Pool.from_arrays(probabilities=np.array([[[1 + 1e-7, -1e-7]]]), labels=[0])

    assert pool.log_probabilities[0, 0, 1] == pytest.approx(-30)
    with pytest.raises(EnsembleError, match="negative"):
        Pool.from_arrays(probabilities=np.array([[[1.0, -1e-5]]]), labels=[0])


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": None}, r"labels must be 2 whole numbers, .* got None\."),
        ({"labels": [0, [1]]}, "labels must be 2 whole numbers, .* got list"),
        ({"names": 3}, "model names must be a list, got 3"),
        ({"costs": ["a"]}, "costs must be 1 numbers above 0: could not convert"),
        ({"probabilities": np.float64(3.0)}, "one array .* or a list .* got float64"),
        ({"probabilities": [[[1.0, 0.0], [1.0]]]}, "one array .* or a list .* got list"),
        ({"probabilities": PROBABILITIES[0]}, r"\(2, 2\) is one model; give it as \[array\]"),
    ],
)
def test_what_is_no_array_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"probabilities": PROBABILITIES, "labels": LABELS}

    with pytest.raises(EnsembleError, match=message) as refusal:
        Pool.from_arrays(**{**usual, **given})

    assert "\n" not in str(refusal.value)

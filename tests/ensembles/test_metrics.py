import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from sklearn import metrics as oracle

from ensembles.errors import EnsembleError
from ensembles.metrics import (
    METRICS,
    REQUESTED,
    MetricName,
    RequestedMetricName,
    accuracy,
    adaptive_calibration_error,
    average_precision,
    balanced_accuracy,
    brier,
    cohen_kappa,
    count_confusions,
    expected_calibration_error,
    find_metric,
    log_loss,
    macro_f1,
    matthews,
    measure_requested,
    roc_auc,
    top_accuracy,
    worst_class_recall,
)
from ensembles.pool import Pool

# Three of class 0, one of class 1; predictions 0, 0, 1, 1.
LOGARITHMS = np.log(np.array([[0.8, 0.2], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]))
LABELS = np.array([0, 0, 0, 1])


def test_figures_worked_out_by_hand() -> None:
    assert accuracy(LOGARITHMS, LABELS) == 0.75
    assert balanced_accuracy(LOGARITHMS, LABELS) == pytest.approx((2 / 3 + 1) / 2)
    assert macro_f1(LOGARITHMS, LABELS) == pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2)
    assert log_loss(LOGARITHMS, LABELS) == pytest.approx(-np.log(0.8 * 0.9 * 0.4 * 0.7) / 4)
    assert brier(LOGARITHMS, LABELS) == pytest.approx(2 * (0.04 + 0.01 + 0.36 + 0.09) / 4)
    assert count_confusions(LOGARITHMS, LABELS).tolist() == [[2, 1], [0, 1]]


def test_calibration_error_is_the_gap_of_each_bin() -> None:
    # Bins of width 1/15: 0.6 in one, 0.7, 0.8 and 0.9 in others; gaps 0.6, 0.3, 0.2, 0.1.
    assert expected_calibration_error(LOGARITHMS, LABELS) == pytest.approx(1.2 / 4)


def test_a_sure_and_right_prediction_has_no_calibration_error() -> None:
    sure = np.log(np.array([[1 - 1e-9, 1e-9]]))

    assert expected_calibration_error(sure, np.array([0])) == pytest.approx(0, abs=1e-8)


def test_figures_agree_with_scikit_learn_when_a_class_is_missing(
    random_pool: Callable[..., Pool],
) -> None:
    pool = random_pool(n_models=1, n_classes=5, n_images=200)
    logarithms = pool.log_probabilities[0, pool.labels != 3]
    labels = pool.labels[pool.labels != 3]
    predictions = logarithms.argmax(axis=1)

    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = oracle.balanced_accuracy_score(labels, predictions)

    assert balanced_accuracy(logarithms, labels) == pytest.approx(expected)
    assert macro_f1(logarithms, labels) == pytest.approx(
        oracle.f1_score(labels, predictions, average="macro")
    )
    assert log_loss(logarithms, labels) == pytest.approx(
        oracle.log_loss(labels, np.exp(logarithms), labels=range(5)), rel=1e-5
    )


def test_the_table_has_every_metric_and_its_direction() -> None:
    assert set(METRICS) == set(get_args(MetricName))
    better = {name for name, metric in METRICS.items() if metric.higher_is_better}
    assert better == {"accuracy", "balanced_accuracy", "macro_f1"}
    assert set(REQUESTED) == set(get_args(RequestedMetricName))
    worse = {name for name, metric in REQUESTED.items() if not metric.higher_is_better}
    assert worse == {"adaptive_calibration_error"}
    assert not set(METRICS) & set(REQUESTED)


def test_requested_figures_worked_out_by_hand() -> None:
    assert worst_class_recall(LOGARITHMS, LABELS) == pytest.approx(2 / 3)
    # Confusion (2, 1; 0, 1): chance is right in (3 * 2 + 1 * 2) / 16 = 1 / 2 of cases.
    assert cohen_kappa(LOGARITHMS, LABELS) == pytest.approx((3 / 4 - 1 / 2) / (1 - 1 / 2))
    assert matthews(LOGARITHMS, LABELS) == pytest.approx(2 / math.sqrt(3 * 1 * 2 * 2))
    # The one image of class 1 has the highest probability of it: both areas are whole.
    assert roc_auc(LOGARITHMS, LABELS) == 1
    assert average_precision(LOGARITHMS, LABELS) == 1


def test_equally_many_images_in_each_bin_of_the_adaptive_error() -> None:
    # 30 images in 15 bins of 2; the surest two of each right and wrong: gaps |1 - 2 p| / 2.
    confidences = np.repeat(np.linspace(0.55, 0.97, 15), 2)
    logarithms = np.log(np.stack([confidences, 1 - confidences], axis=1))
    labels = np.tile([0, 1], 15)

    error = adaptive_calibration_error(logarithms, labels)

    assert error == pytest.approx(np.abs(0.5 - confidences).mean())


def test_the_true_class_is_among_the_first_k() -> None:
    # Places of the true class: 0, 1, 2, 3; of two equal probabilities the lower class is first.
    logarithms = np.log(np.tile([0.4, 0.3, 0.15, 0.15], (4, 1)))
    labels = np.arange(4)

    shares = [top_accuracy(logarithms, labels, k=k) for k in (1, 2, 3)]

    assert shares == [0.25, 0.5, 0.75]
    assert math.isnan(top_accuracy(logarithms, labels, k=4))


@pytest.mark.parametrize("missing", [None, 3])
def test_requested_figures_agree_with_scikit_learn(
    random_pool: Callable[..., Pool], missing: int | None
) -> None:
    pool = random_pool(n_models=1, n_classes=5, n_images=300)
    kept = pool.labels != (-1 if missing is None else missing)
    logarithms, labels = pool.log_probabilities[0, kept], pool.labels[kept]
    predictions, classes = logarithms.argmax(axis=1), range(5)

    measured = measure_requested(list(REQUESTED), logarithms, labels)

    assert measured["matthews"] == pytest.approx(oracle.matthews_corrcoef(labels, predictions))
    assert measured["cohen_kappa"] == pytest.approx(oracle.cohen_kappa_score(labels, predictions))
    assert measured["top_3_accuracy"] == pytest.approx(
        oracle.top_k_accuracy_score(labels, logarithms, k=3, labels=classes)
    )
    assert measured["top_5_accuracy"] is None
    if missing is None:
        assert measured["roc_auc"] == pytest.approx(
            oracle.roc_auc_score(labels, np.exp(logarithms), multi_class="ovr"), abs=1e-5
        )
        assert measured["average_precision"] == pytest.approx(
            oracle.average_precision_score(labels, np.exp(logarithms)), abs=1e-5
        )


def test_figures_without_meaning_are_none() -> None:
    sure_of_all = np.log(np.array([[0.9, 0.1], [0.8, 0.2]]))

    measured = measure_requested(
        ["roc_auc", "average_precision", "matthews", "cohen_kappa", "top_3_accuracy", "accuracy"],
        sure_of_all,
        np.zeros(2, dtype=np.int64),
    )

    assert measured.pop("accuracy") == 1
    assert set(measured.values()) == {None}


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EnsembleError, match=r"no metric 'auc'; known are accuracy, .*roc_auc"):
        find_metric("auc")

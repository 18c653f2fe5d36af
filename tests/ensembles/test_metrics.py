from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from sklearn import metrics as oracle

from ensembles.metrics import (
    METRICS,
    MetricName,
    accuracy,
    balanced_accuracy,
    brier,
    count_confusions,
    expected_calibration_error,
    log_loss,
    macro_f1,
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

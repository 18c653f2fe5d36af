"""How good predictions are: one number from log-probabilities and labels.

A prediction is the class of highest probability, the lowest such class when there are several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

MetricName = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "log_loss",
    "brier",
    "expected_calibration_error",
]
_N_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A function of log-probabilities and labels, and its good direction."""

    compute: Callable[
        [Float[np.ndarray, "images classes"], Int[np.ndarray, " images"]],
        float,
    ]
    higher_is_better: bool


def accuracy(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the share of images whose prediction is right."""
    return float((log_probabilities.argmax(axis=1) == labels).mean())


def balanced_accuracy(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the mean over the classes that occur of the share found."""
    confusion = count_confusions(log_probabilities, labels)
    n_true = confusion.sum(axis=1)
    present = n_true > 0
    return float((confusion.diagonal()[present] / n_true[present]).mean())


def macro_f1(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the mean F1 of the classes that occur or are predicted."""
    confusion = count_confusions(log_probabilities, labels)
    totals = confusion.sum(axis=0) + confusion.sum(axis=1)
    present = totals > 0
    return float((2 * confusion.diagonal()[present] / totals[present]).mean())


def log_loss(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the mean negative logarithm of the true class's probability, in nats."""
    return float(image_log_losses(log_probabilities, labels).mean())


def brier(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the mean squared distance to the true distribution, from 0 to 2."""
    errors = np.exp(log_probabilities, dtype=np.float64)
    errors[np.arange(len(labels)), labels] -= 1.0
    return float(np.square(errors).sum(axis=1).mean())


def expected_calibration_error(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the mean gap between confidence and accuracy over 15 bins of equal width.

    Biased upwards for few images: a figure to report, not one to select on.

    Source:
        Guo et al. 2017, "On calibration of modern neural networks", section 2.
    """
    right = log_probabilities.argmax(axis=1) == labels
    confidence = np.exp(log_probabilities.max(axis=1), dtype=np.float64)
    bins = np.clip(np.ceil(confidence * _N_BINS).astype(np.int64) - 1, 0, _N_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=_N_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def image_log_losses(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> Float[np.ndarray, " images"]:
    """Return each image's negative logarithm of the true class's probability, in nats."""
    losses: np.ndarray = -log_probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return losses


def count_confusions(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> Int[np.ndarray, "classes classes"]:
    """Count the images of each true class (row) that were given each class (column)."""
    n_classes = log_probabilities.shape[1]
    cells = labels * n_classes + log_probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


METRICS: Mapping[MetricName, Metric] = {
    "accuracy": Metric(compute=accuracy, higher_is_better=True),
    "balanced_accuracy": Metric(compute=balanced_accuracy, higher_is_better=True),
    "macro_f1": Metric(compute=macro_f1, higher_is_better=True),
    "log_loss": Metric(compute=log_loss, higher_is_better=False),
    "brier": Metric(compute=brier, higher_is_better=False),
    "expected_calibration_error": Metric(
        compute=expected_calibration_error, higher_is_better=False
    ),
}

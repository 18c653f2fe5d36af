"""How good predictions are: one number from log-probabilities and labels.

A prediction is the class of highest probability, the lowest such class when there are several.

Each function returns NaN where its figure is not defined, such as an area under the ROC where
all images are of one class; `measure_requested` turns that into None, which JSON can hold.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from ensembles.errors import EnsembleError

MetricName = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "log_loss",
    "brier",
    "expected_calibration_error",
]
RequestedMetricName = Literal[
    "top_3_accuracy",
    "top_5_accuracy",
    "worst_class_recall",
    "matthews",
    "cohen_kappa",
    "roc_auc",
    "average_precision",
    "adaptive_calibration_error",
]
N_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A function of log-probabilities and labels, and its good direction."""

    compute: Callable[
        [Float[np.ndarray, "images classes"], Int[np.ndarray, " images"]],
        float,
    ]
    higher_is_better: bool
    of_labels: bool = False
    """Whether it is the class given to each image that counts, and no probability; then it takes
    whatever scores the classes are given by (`ensembles.decision`)."""


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
    right, confidences = find_confidences(log_probabilities, labels)
    gaps = np.bincount(find_bins(confidences, N_BINS), weights=right - confidences)
    return float(np.abs(gaps).sum() / len(labels))


def adaptive_calibration_error(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the mean gap between confidence and accuracy over 15 bins of equally many images.

    Confidences of a good model crowd near 1, where bins of equal width see them as one.

    Source:
        Nguyen and O'Connor 2015, "Posterior calibration and exploratory analysis for natural
        language processing models", section 3.
    """
    right, confidences = find_confidences(log_probabilities, labels)
    gaps = (right - confidences)[np.argsort(confidences, kind="stable")]
    parts = np.array_split(gaps, min(N_BINS, len(gaps)))
    return float(sum(abs(part.sum()) for part in parts) / len(labels))


def top_accuracy(
    log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    *,
    k: int,
) -> float:
    """Return the share of images whose true class is among the k most probable.

    Of equally probable classes the lower comes first. NaN where there are no more than k classes:
    any prediction has them all.
    """
    if log_probabilities.shape[1] <= k:
        return math.nan
    true = log_probabilities[np.arange(len(labels)), labels][:, None]
    lower = np.arange(log_probabilities.shape[1]) < labels[:, None]
    n_ahead = ((log_probabilities > true) | ((log_probabilities == true) & lower)).sum(axis=1)
    return float((n_ahead < k).mean())


def worst_class_recall(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the share found of that class, among those that occur, which is found least."""
    confusion = count_confusions(log_probabilities, labels)
    n_true = confusion.sum(axis=1)
    present = n_true > 0
    return float((confusion.diagonal()[present] / n_true[present]).min())


def matthews(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the correlation of predicted and true classes, from -1 to 1.

    NaN where all images are of one class or all are given one.

    Source:
        Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation
        coefficient".
    """
    confusion = count_confusions(log_probabilities, labels).astype(np.float64)
    n_true, n_predicted, n_images = confusion.sum(axis=1), confusion.sum(axis=0), len(labels)
    spread = (n_images**2 - n_true @ n_true) * (n_images**2 - n_predicted @ n_predicted)
    if spread == 0:
        return math.nan
    covariance = np.trace(confusion) * n_images - n_true @ n_predicted
    return float(covariance / math.sqrt(spread))


def cohen_kappa(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the accuracy above that of chance, as a share of the most possible.

    NaN where chance alone is always right: all images are of one class and are given it.

    Source:
        Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    confusion = count_confusions(log_probabilities, labels).astype(np.float64)
    n_images = len(labels)
    chance = float(confusion.sum(axis=1) @ confusion.sum(axis=0)) / n_images**2
    if chance == 1:
        return math.nan
    return (float(np.trace(confusion)) / n_images - chance) / (1 - chance)


def roc_auc(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the area under the ROC of one class against the rest, mean over those that occur.

    NaN where all images are of one class.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - 1 s, for those who ask for it

    return _mean_over_classes(roc_auc_score, log_probabilities, labels)


def average_precision(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the average precision of one class against the rest, mean over those that occur.

    NaN where all images are of one class.
    """
    from sklearn.metrics import average_precision_score  # noqa: PLC0415 - as above

    return _mean_over_classes(average_precision_score, log_probabilities, labels)


def image_log_losses(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> Float[np.ndarray, " images"]:
    """Return each image's negative logarithm of the true class's probability, in nats."""
    losses: np.ndarray = -log_probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return losses


def find_confidences(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> tuple[Bool[np.ndarray, " images"], Float64[np.ndarray, " images"]]:
    """Return whether each prediction is right, and its probability."""
    right: np.ndarray = log_probabilities.argmax(axis=1) == labels
    return right, np.exp(log_probabilities.max(axis=1), dtype=np.float64)


def find_bins(
    confidences: Float64[np.ndarray, " images"], n_bins: int
) -> Int[np.ndarray, " images"]:
    """Return each confidence's bin of equal width; a bin holds its upper edge."""
    bins: np.ndarray = np.clip(np.ceil(confidences * n_bins), 1, n_bins).astype(np.int64) - 1
    return bins


def count_confusions(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> Int[np.ndarray, "classes classes"]:
    """Count the images of each true class (row) that were given each class (column)."""
    n_classes = log_probabilities.shape[1]
    cells = labels * n_classes + log_probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


METRICS: Mapping[MetricName, Metric] = {
    "accuracy": Metric(compute=accuracy, higher_is_better=True, of_labels=True),
    "balanced_accuracy": Metric(compute=balanced_accuracy, higher_is_better=True, of_labels=True),
    "macro_f1": Metric(compute=macro_f1, higher_is_better=True, of_labels=True),
    "log_loss": Metric(compute=log_loss, higher_is_better=False),
    "brier": Metric(compute=brier, higher_is_better=False),
    "expected_calibration_error": Metric(
        compute=expected_calibration_error, higher_is_better=False
    ),
}
"""Cheap, and reported for every ensemble."""

REQUESTED: Mapping[RequestedMetricName, Metric] = {
    "top_3_accuracy": Metric(
        compute=partial(top_accuracy, k=3), higher_is_better=True, of_labels=True
    ),
    "top_5_accuracy": Metric(
        compute=partial(top_accuracy, k=5), higher_is_better=True, of_labels=True
    ),
    "worst_class_recall": Metric(
        compute=worst_class_recall, higher_is_better=True, of_labels=True
    ),
    "matthews": Metric(compute=matthews, higher_is_better=True, of_labels=True),
    "cohen_kappa": Metric(compute=cohen_kappa, higher_is_better=True, of_labels=True),
    "roc_auc": Metric(compute=roc_auc, higher_is_better=True),
    "average_precision": Metric(compute=average_precision, higher_is_better=True),
    "adaptive_calibration_error": Metric(
        compute=adaptive_calibration_error, higher_is_better=False
    ),
}
"""Reported where somebody asks for them; the two areas take some milliseconds for each class."""


def find_metric(name: str) -> Metric:
    """Return the metric with a name, of those always reported and those on request.

    Raises:
        EnsembleError: There is no such metric.
    """
    known: dict[str, Metric] = dict([*METRICS.items(), *REQUESTED.items()])
    if name not in known:
        raise EnsembleError(f"there is no metric {name!r}; known are {', '.join(known)}.")
    return known[name]


def measure_requested(
    names: Sequence[str],
    log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    *,
    scores: Float[np.ndarray, "images classes"] | None = None,
) -> dict[str, float | None]:
    """Compute metrics by name.

    Args:
        names: Of any metrics, always reported or not.
        log_probabilities: Predictions.
        labels: The true classes.
        scores: What the classes are given by, for the metrics of labels; default: the predictions.

    Returns:
        One value for each name, in their order; None where it is not defined for these images.

    Raises:
        EnsembleError: There is no such metric.
    """
    metrics = {name: find_metric(name) for name in names}
    by_label = log_probabilities if scores is None else scores
    values = {
        name: each.compute(by_label if each.of_labels else log_probabilities, labels)
        for name, each in metrics.items()
    }
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _mean_over_classes(
    score: Callable[[np.ndarray, np.ndarray], float],
    log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
) -> float:
    present = np.unique(labels)
    if len(present) < 2:
        return math.nan
    return float(
        np.mean([score(labels == label, log_probabilities[:, label]) for label in present])
    )

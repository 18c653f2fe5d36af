"""How much of an ensemble's gain over the best single model one student keeps.

All three see the same test images, so the two differences are paired, and so is their ratio. The
ratio only means something where there is a gain: where the ensemble is not established to be
better than the single model, none is computed.
"""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from pydantic import ConfigDict

from ensembles.comparison import (
    N_RESAMPLES,
    SIGNIFICANCE,
    Comparison,
    Interval,
    compare,
    resample_mean,
)
from ensembles.decision import MOST_PROBABLE, Decision
from ensembles.documents import read_document
from ensembles.metrics import MetricName, image_log_losses
from ensembles.report import Figures, measure


@dataclass(frozen=True, kw_only=True)
class RetainedGain:
    """The share of an ensemble's gain that a student keeps: 1 is all of it, below 0 a loss."""

    share: float
    interval: Interval
    """Over test images; another student of the same recipe would differ besides."""

    def __str__(self) -> str:
        """Return share and interval as people read them."""
        low, high = 100 * self.interval.low, 100 * self.interval.high
        return f"{100 * self.share:.0f} % (95 % interval {low:.0f} to {high:.0f})"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One of the three that are compared."""

    name: str
    """What it is, such as `student`, the method of the ensemble, or `single`."""
    n_members: int
    cost: float
    """Of one prediction, in best single models."""
    test: Figures


@dataclass(frozen=True, kw_only=True)
class DistillationReport:
    """What the test images say of a student, its teacher and the best single model."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    student: Contestant
    ensemble: Contestant
    single: Contestant
    comparison: Comparison
    """Of the student with the best single model."""
    gain: Comparison
    """Of the ensemble with the best single model."""
    retained_accuracy: RetainedGain | None
    """None where the ensemble is not established to be more accurate, by McNemar's test."""
    retained_log_loss: RetainedGain | None
    """None where the log-loss of the ensemble is not established to be lower."""
    n_test_openings: int
    """How often the test images of this study were used, this time included."""

    @property
    def verdict(self) -> str:
        """Student against single model, in words."""
        return f"The student is {self.comparison.finding(self.student.cost)}"

    @property
    def retained(self) -> str:
        """How much of the ensemble's gain the student keeps, in words, or why nobody can say."""
        accuracy, log_loss = self.retained_accuracy, self.retained_log_loss
        if accuracy is None and log_loss is None:
            return (
                "The ensemble itself is not established to be better than the best single trial "
                f"on {self.gain.n_images:,} test images: there is no gain of which the student "
                "could keep a share."
            )
        if accuracy is None:
            return (
                "The ensemble is not established to be more accurate than the best single trial, "
                "so there is no share of that to keep; of its gain in log-loss the student keeps "
                f"{log_loss}."
            )
        also = "" if log_loss is None else f", and {log_loss} of that in log-loss"
        return f"The student keeps {accuracy} of the ensemble's gain in accuracy{also}."

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> "DistillationReport":
        """Read a report from JSON values.

        Raises:
            EnsembleError: A key is missing or unknown, or a value is of the wrong kind.
        """
        return read_document(cls, values, what="report of a distillation")


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """What one contestant predicts for the test images."""

    name: str
    log_probabilities: Float[np.ndarray, "images classes"]
    """Combined, with the temperature."""
    n_members: int
    cost: float
    """Of one prediction, in any unit that all contestants share."""


def report_distillation(  # noqa: PLR0913 - three predictions, and what of them decides
    student: Predicted,
    ensemble: Predicted,
    single: Predicted,
    labels: Int[np.ndarray, " images"],
    *,
    metric: MetricName = "accuracy",
    decision: Decision = MOST_PROBABLE,
    n_test_openings: int = 1,
) -> DistillationReport:
    """Compare a student with its teacher and with the best single model.

    Args:
        student: One network that learned from the ensemble.
        ensemble: Its teacher.
        single: The best single model, with a temperature of its own.
        labels: The true classes of the test images.
        metric: What decides whether one is better than another; see `compare`.
        decision: How the predictions of all three become labels.
        n_test_openings: How often the test images of this study were used, this time included.

    Raises:
        EnsembleError: There is no test image.
    """
    said = [each.log_probabilities for each in (student, ensemble, single)]
    comparison, gain = (
        compare(each, said[2], labels, metric=metric, decision=decision) for each in said[:2]
    )
    scores = [decision.score(each) for each in said]
    right = [(each.argmax(axis=1) == labels).astype(np.float64) for each in scores]
    losses = [image_log_losses(each, labels) for each in said]
    contestants = {
        role: Contestant(
            name=each.name,
            n_members=each.n_members,
            cost=each.cost / single.cost,
            test=measure(each.log_probabilities, labels, decision),
        )
        for role, each in (("student", student), ("ensemble", ensemble), ("single", single))
    }
    more_accurate = gain.accuracy_difference > 0 and gain.p_value < SIGNIFICANCE
    return DistillationReport(
        **contestants,
        comparison=comparison,
        gain=gain,
        retained_accuracy=measure_retained(right[0] - right[2], right[1] - right[2], labels)
        if more_accurate
        else None,
        retained_log_loss=measure_retained(losses[2] - losses[0], losses[2] - losses[1], labels),
        n_test_openings=n_test_openings,
    )


def measure_retained(
    student_gains: Float64[np.ndarray, " images"],
    ensemble_gains: Float64[np.ndarray, " images"],
    labels: Int[np.ndarray, " images"],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> RetainedGain | None:
    """Return the share of the ensemble's mean gain that the student has too.

    The interval is a paired bootstrap within the classes. A resample in which the ensemble gains
    nothing has no ratio; it counts as beyond both limits, so that the interval is rather too wide.

    Args:
        student_gains: What the student has over the single model on each image.
        ensemble_gains: What the ensemble has over it.
        labels: The true classes.
        n_resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Returns:
        None where so many resamples show no gain that the ratio has no limits.
    """
    ours, theirs = (
        resample_mean(gains, labels, n_resamples, np.random.default_rng(seed))
        for gains in (student_gains, ensemble_gains)
    )
    has_gain = theirs > 0
    ratios = np.divide(ours, theirs, out=np.zeros(n_resamples), where=has_gain)
    low = np.percentile(np.where(has_gain, ratios, -np.inf), 2.5, method="lower")
    high = np.percentile(np.where(has_gain, ratios, np.inf), 97.5, method="higher")
    if ensemble_gains.mean() <= 0 or not np.isfinite([low, high]).all():
        return None
    return RetainedGain(
        share=float(student_gains.mean() / ensemble_gains.mean()),
        interval=Interval(low=float(low), high=float(high)),
    )

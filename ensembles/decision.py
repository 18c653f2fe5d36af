"""How probabilities become a label: honest probabilities first, the metric's rule afterwards.

Where classes are unequal, a fit that weighs the rare ones up was measured to be worse than a
plain fit whose decision divides by the class shares: 71.0 against 71.2 % balanced accuracy, and
its probabilities were no longer true. So probabilities stay as they are and the rule moves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64
from pydantic import ConfigDict

from ensembles.errors import EnsembleError
from ensembles.metrics import MetricName, RequestedMetricName

Rule = Literal["most_probable", "prior_corrected"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which class an image is given, from its probabilities."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    rule: Rule
    """`most_probable`: the class of highest probability; `prior_corrected`: the class whose
    probability is highest in relation to its share of all images."""
    priors: tuple[float, ...] = ()
    """`prior_corrected` alone: the class shares that the probabilities reflect, summing to 1."""

    def __post_init__(self) -> None:
        """Refuse shares that no images have."""
        if self.rule == "most_probable":
            if self.priors:
                raise EnsembleError("class shares belong to the rule prior_corrected alone.")
            return
        whole = math.fsum(self.priors)
        # Written so that NaN is refused too.
        if len(self.priors) < 2 or not min(self.priors) > 0 or not abs(whole - 1) <= 1e-6:
            raise EnsembleError(
                "prior_corrected needs the share of each of at least 2 classes, all above 0 "
                f"and with sum 1, got {list(self.priors)}."
            )

    def score(
        self, log_probabilities: Float[np.ndarray, "images classes"]
    ) -> Float[np.ndarray, "images classes"]:
        """Return what `decide` takes the greatest of.

        Args:
            log_probabilities: Predictions.

        Returns:
            For `most_probable` the predictions; for `prior_corrected` the log-probabilities that
            would hold if all classes were equally frequent. The label metrics of
            `ensembles.metrics` accept both.

        Raises:
            EnsembleError: The predictions have another number of classes.
        """
        if self.rule == "most_probable":
            return log_probabilities
        n_classes = log_probabilities.shape[1]
        if n_classes != len(self.priors):
            raise EnsembleError(
                f"the decision knows the shares of {len(self.priors)} classes, "
                f"got predictions for {n_classes}."
            )
        scores: np.ndarray = log_probabilities - np.log(self.priors)
        scores -= scores.max(axis=1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return scores

    def decide(
        self, log_probabilities: Float[np.ndarray, "images classes"]
    ) -> Int64[np.ndarray, " images"]:
        """Give each image a class; of equally good classes, the first.

        Args:
            log_probabilities: Predictions.

        Returns:
            One class for each image, from 0.

        Raises:
            EnsembleError: The predictions have another number of classes.
        """
        labels: np.ndarray = self.score(log_probabilities).argmax(axis=1)
        return labels


MOST_PROBABLE = Decision(rule="most_probable")


def choose_decision(
    metric: MetricName | RequestedMetricName, priors: Sequence[float] | np.ndarray
) -> Decision:
    """Choose the rule that suits a metric.

    Dividing by the class shares gives the classes equal say, which is what balanced accuracy
    counts; for every other metric the most probable class was as good or better.

    Args:
        metric: What the user wants to be good.
        priors: How frequent each class is among the images that the ensemble was fitted on:
            shares or counts.

    Returns:
        The rule, with the shares if it needs them.

    Raises:
        EnsembleError: Balanced accuracy is wanted and a class has no image.
    """
    if metric != "balanced_accuracy":
        return MOST_PROBABLE
    frequencies = np.asarray(priors, dtype=np.float64)
    if frequencies.ndim != 1 or not (frequencies > 0).all() or not np.isfinite(frequencies).all():
        raise EnsembleError(
            "deciding for balanced accuracy needs a frequency above 0 for each class, "
            f"got {frequencies.tolist()}."
        )
    return Decision(
        rule="prior_corrected", priors=tuple((frequencies / frequencies.sum()).tolist())
    )

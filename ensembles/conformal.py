"""What an ensemble may promise: sets that hold the true class, answers that are right.

Both promises rest on images that the ensemble did not see when it was fitted. Where there are
no others than the fitting images, `ensembles.cross_fitting` makes such predictions for them.

Both hold for images of the same kind as these, on average over all of them: not for each class,
nor for images from elsewhere.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from pydantic import ConfigDict

from ensembles.errors import EnsembleError

RISK = 0.05
"""How often `fit_rejection` may promise an accuracy that fresh images do not reach."""
_STARTS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the images, the surest first, from which more and more are answered."""
_N_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Conformal:
    """Sets of classes that hold the true one for at least a share 1 - alpha of all images."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    alpha: float
    """Share of images whose set may miss the true class, between 0 and 1."""
    threshold: float
    """A class is in the set if its probability is at least this."""
    n_images: int
    """How many images it was fitted on."""

    def __post_init__(self) -> None:
        """Refuse what no fit returns."""
        _check_share("alpha", self.alpha)
        _check_threshold(self.threshold)
        _check_count(self.alpha, self.n_images)

    def sets(
        self, log_probabilities: Float[np.ndarray, "images classes"]
    ) -> Bool[np.ndarray, "images classes"]:
        """Return each image's set of classes.

        The most probable class is always in it: where even that one is below the threshold the
        plain method returns an empty set, which helps nobody. This can only add true classes,
        so the promise stands.

        Args:
            log_probabilities: Predictions of the same ensemble.

        Returns:
            True for the classes in the set.
        """
        sets: np.ndarray = np.exp(log_probabilities, dtype=np.float64) >= self.threshold
        sets[np.arange(len(sets)), log_probabilities.argmax(axis=1)] = True
        return sets


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Answer only where the ensemble is sure enough to be right as often as wanted."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    threshold: float
    """An image is answered if its largest probability is at least this."""
    target_accuracy: float
    """Of the answers, between 0 and 1."""
    coverage: float
    """Share of the fitting images that are answered."""
    n_images: int
    """How many images it was fitted on."""

    def __post_init__(self) -> None:
        """Refuse what no fit returns."""
        _check_threshold(self.threshold)
        _check_share("target_accuracy", self.target_accuracy)
        if not 0 < self.coverage <= 1 or self.n_images < 1:
            raise EnsembleError(
                "a rejection needs a coverage above 0 and at most 1 and at least 1 image, "
                f"got {self.coverage} and {self.n_images}."
            )

    def answers(
        self, log_probabilities: Float[np.ndarray, "images classes"]
    ) -> Bool[np.ndarray, " images"]:
        """Return which images are answered; the answer is the most probable class."""
        answered: np.ndarray = _confidences(log_probabilities) >= self.threshold
        return answered


def fit_conformal(
    log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    *,
    alpha: float,
) -> Conformal:
    """Find the highest threshold whose sets hold the true class often enough.

    Args:
        log_probabilities: Predictions for images that the ensemble was not fitted on, such as
            those of `cross_fitted_predictions`.
        labels: The true classes.
        alpha: Share of images whose set may miss the true class, between 0 and 1.

    Returns:
        The threshold; over draws of these images and of one fresh one, the fresh one's set holds
        its class with a probability of at least 1 - alpha.

    Raises:
        EnsembleError: `alpha` is no share, or so small that there are too few images for it.

    Source:
        Sadinle, Lei and Wasserman 2019, "Least ambiguous set-valued classifiers with bounded
        error levels"; the split form of Vovk, Gammerman and Shafer 2005. Unlike there, no set
        is empty.
    """
    _check_share("alpha", alpha)
    n_images = len(labels)
    _check_count(alpha, n_images)
    true = np.exp(log_probabilities[np.arange(n_images), labels], dtype=np.float64)
    threshold = np.sort(true)[n_images - _conformal_rank(alpha, n_images)]
    return Conformal(alpha=alpha, threshold=min(1.0, float(threshold)), n_images=n_images)


def fit_rejection(
    log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    *,
    target_accuracy: float,
) -> Rejection:
    """Find the lowest threshold whose answers are shown to be right as often as wanted.

    Shown, not seen: the lowest of many thresholds at which the observed accuracy reaches the
    target is the luckiest of them, and misses it on fresh images about every other time. Here
    each threshold is tested exactly, and all tests together err in at most 5 % of all fits.

    Args:
        log_probabilities: Predictions for images that the ensemble was not fitted on, such as
            those of `cross_fitted_predictions`.
        labels: The true classes.
        target_accuracy: Of the answers, between 0 and 1.

    Returns:
        The threshold; 0 if all images may be answered.

    Raises:
        EnsembleError: `target_accuracy` is no share, or no threshold is shown to reach it.

    Source:
        Angelopoulos et al. 2021, "Learn then test": fixed-sequence testing from five starts, each
        with a fifth of the risk; from each start more and more images are answered until a
        binomial test fails.
    """
    _check_share("target_accuracy", target_accuracy)
    n_images = len(labels)
    if n_images == 0:
        raise EnsembleError("a threshold needs at least one image to be fitted on, got none.")
    confidences = _confidences(log_probabilities)
    order = np.argsort(-confidences, kind="stable")
    falling = confidences[order]
    n_errors = np.cumsum((log_probabilities.argmax(axis=1) != labels)[order])
    steps = np.unique(np.ceil(np.arange(1, _N_STEPS + 1) / _N_STEPS * n_images).astype(np.int64))
    # Images as sure as the last one of a step are answered with it.
    answered = np.searchsorted(-falling, -falling[steps - 1], side="right")
    n_wrong = n_errors[answered - 1]
    starts = _find_starts(answered, n_images)
    passed = _reach(answered, n_wrong, starts, target_accuracy)
    if not passed.any():
        highest = _find_highest_target(answered[starts], n_wrong[starts])
        raise EnsembleError(
            f"no threshold is shown to reach an accuracy of {target_accuracy:.4g} on "
            f"{n_images} images; the highest that is shown is {highest:.4g}."
        )
    n_answered = int(answered[passed].max())
    return Rejection(
        threshold=0.0 if n_answered == n_images else float(falling[n_answered - 1]),
        target_accuracy=target_accuracy,
        coverage=n_answered / n_images,
        n_images=n_images,
    )


def _conformal_rank(alpha: float, n_images: int) -> int:
    """Return which of the true classes' probabilities, from the highest, is the threshold."""
    # 20 * (1 - 0.05) must be 19, not 19.000000000000004.
    return max(1, math.ceil((n_images + 1) * (1 - alpha) - 1e-9))


def _confidences(
    log_probabilities: Float[np.ndarray, "images classes"],
) -> Float[np.ndarray, " images"]:
    # Rounding may leave a sure prediction a hair above 1.
    confidences: np.ndarray = np.exp(log_probabilities.max(axis=1), dtype=np.float64)
    np.minimum(confidences, 1.0, out=confidences)
    return confidences


def _find_starts(
    answered: Int64[np.ndarray, " steps"], n_images: int
) -> Int64[np.ndarray, " starts"]:
    starts: np.ndarray = np.searchsorted(answered, np.ceil(np.multiply(_STARTS, n_images)))
    return starts


def _reach(
    answered: Int64[np.ndarray, " steps"],
    n_errors: Int64[np.ndarray, " steps"],
    starts: Int64[np.ndarray, " starts"],
    target_accuracy: float,
) -> Bool[np.ndarray, " steps"]:
    """Return which steps are reached from a start without a failing test on the way."""
    from scipy.special import bdtr  # noqa: PLC0415 - for fits; predictions need no SciPy

    good = bdtr(n_errors, answered, 1 - target_accuracy) <= RISK / len(_STARTS)
    reached = np.zeros(len(answered), dtype=np.bool_)
    for first in starts:
        reached[first:] |= np.logical_and.accumulate(good[first:])
    return reached


def _find_highest_target(
    answered: Int64[np.ndarray, " starts"], n_errors: Int64[np.ndarray, " starts"]
) -> float:
    """Return the highest accuracy that a start is shown to have: Clopper and Pearson's bound."""
    from scipy.special import betaincinv  # noqa: PLC0415 - as above

    n_right = answered - n_errors
    bounds = betaincinv(np.maximum(n_right, 1), n_errors + 1, RISK / len(_STARTS))
    return float(np.where(n_right > 0, bounds, 0.0).max())


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise EnsembleError(f"{name} must lie between 0 and 1, got {value}.")


def _check_threshold(value: float) -> None:
    if not 0 <= value <= 1:
        raise EnsembleError(f"a threshold must be a probability, got {value}.")


def _check_count(alpha: float, n_images: int) -> None:
    if _conformal_rank(alpha, n_images) > n_images:
        raise EnsembleError(
            f"alpha {alpha:g} needs at least {math.ceil(1 / alpha - 1e-9) - 1} images, "
            f"got {n_images}."
        )

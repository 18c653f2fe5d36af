"""Whether an ensemble is better than the best single model, on images that chose neither.

Both see the same images, so all is paired: the interval of a difference is much narrower than
the difference of two intervals. Accuracy decides, by McNemar's exact test; log-loss is told.
Where classes are unequal and a user names a metric that minds, its own interval decides.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int

from ensembles.decision import MOST_PROBABLE, Decision
from ensembles.errors import EnsembleError
from ensembles.metrics import METRICS, MetricName, image_log_losses

Verdict = Literal["better", "worse", "not distinguishable"]

N_RESAMPLES = 2000
N_RESAMPLES_OF_A_METRIC = 500
"""Each costs two looks at all images."""
SIGNIFICANCE = 0.05
_Z = 1.959964
"""Of a two-sided 95 % interval."""
_MIN_DISCORDANT = 6
"""Images that must all speak for one side before the exact p-value falls below 0.05."""
_BLOCK = 4_000_000
"""Numbers drawn at once: 64 MB for indices and values."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class NamedDifference:
    """The paired difference in a metric of labels that a user named."""

    metric: MetricName
    ensemble: float
    single: float
    gain: float
    """Ensemble minus single."""
    gain_interval: Interval

    @property
    def title(self) -> str:
        """The metric in words."""
        return self.metric.replace("_", " ").replace("f1", "F1")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired difference between an ensemble and a single model."""

    n_images: int
    accuracy: float
    """Of the ensemble."""
    single_accuracy: float
    accuracy_difference: float
    """Ensemble minus single, as a share."""
    accuracy_interval: Interval
    log_loss_difference: float
    """Ensemble minus single, in nats; below 0 is better."""
    log_loss_interval: Interval
    only_ensemble_right: int
    only_single_right: int
    p_value: float
    """McNemar's, exact and two-sided."""
    smallest_visible_difference: float
    """A true difference in accuracy below this would mostly go unseen on so few images."""
    verdict: Verdict
    named: NamedDifference | None = None
    """Decides in the place of accuracy."""

    def figures(self) -> dict[str, bool | int | float | str | tuple[float, ...]]:
        """Return all numbers by name, without records inside."""
        named = (
            {f"named_{name}": value for name, value in vars(self.named).items()}
            if (self.named)
            else {}
        )
        plain = {name: value for name, value in vars(self).items() if name != "named"}
        return {
            name: (value.low, value.high) if isinstance(value, Interval) else value
            for name, value in {**plain, **named}.items()
        }

    def sentence(self, *, method: str, n_members: int, cost_ratio: float) -> str:
        """Say in plain English what was found.

        Args:
            method: Of the ensemble.
            n_members: Models in the ensemble.
            cost_ratio: Cost of the ensemble, in single models.

        Returns:
            One or two sentences with the numbers in them.
        """
        if method == "single":
            return (
                "The best single trial is the choice itself: there is no ensemble to compare, "
                f"accuracy {self.accuracy:.2%} on {self.n_images:,} test images."
            ).replace("%", " %")
        if n_members == 1:
            weighed = "re-weighted trial" if method in ("llp", "stack") else "model"
            return f"One {weighed} ({method}) is {self.finding(cost_ratio)}"
        return f"The ensemble ({method}, {n_members} members) is {self.finding(cost_ratio)}"

    def finding(self, cost_ratio: float = 1.0) -> str:
        """Say what was found, as what follows the name of the first model and `is`.

        Args:
            cost_ratio: Cost of the first model, in single models.
        """
        if self.verdict == "not distinguishable":
            return self._undecided(cost_ratio)
        return self._decided()

    def in_points(self) -> str:
        """Return the difference that decides, as part of a sentence."""
        named, p_value = self.named, _format_p(self.p_value)
        difference = named.gain if named else self.accuracy_difference
        interval = named.gain_interval if named else self.accuracy_interval
        in_accuracy = f"accuracy {100 * self.accuracy_difference:+.2f} points"
        return (
            f"difference {100 * difference:+.2f} points, 95 % interval "
            f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
            f"{f'; {in_accuracy}' if named else ''}, {p_value}"
        )

    def _decided(self) -> str:
        sign = 1 if self.verdict == "better" else -1
        named = self.named
        difference = named.gain if named else self.accuracy_difference
        interval = named.gain_interval if named else self.accuracy_interval
        bounds = sorted(sign * 100 * bound for bound in (interval.low, interval.high))
        test = f"McNemar {_format_p(self.p_value)}"
        in_accuracy = f"accuracy {100 * self.accuracy_difference:+.2f} points, {test}"
        advice = "" if self.verdict == "better" else " Export the single model."
        return (
            f"{self.verdict} than the best single trial by "
            f"{sign * 100 * difference:.2f} points of {named.title if named else 'accuracy'} "
            f"(95 % interval {bounds[0]:.1f} to {bounds[1]:.1f}, "
            f"{in_accuracy if named else test}, {self.n_images:,} test images)."
            f"{self._log_loss_remark() if self._log_loss_disagrees else ''}{advice}"
        )

    def _undecided(self, cost_ratio: float) -> str:
        if self.named:
            return self._undecided_by_name(self.named, cost_ratio)
        remark = self._log_loss_remark()
        cheaper = f" and {cost_ratio:.1f} times cheaper" if cost_ratio >= 1.05 else ""
        as_good = "as accurate" if remark else "as good"
        return (
            f"not distinguishable from the best single trial on {self.n_images:,} test images "
            f"({self.in_points()}; a difference below about "
            f"{100 * self.smallest_visible_difference:.1f} points could not be seen): "
            f"exporting the single model is {as_good}{cheaper}.{remark}"
        )

    def _undecided_by_name(self, named: NamedDifference, cost_ratio: float) -> str:
        cheaper = f" and {cost_ratio:.1f} times cheaper" if cost_ratio >= 1.05 else ""
        return (
            f"not distinguishable from the best single trial in {named.title} on "
            f"{self.n_images:,} test images ({self.in_points()}): "
            f"exporting the single model is as good{cheaper}.{self._log_loss_remark()}"
        )

    @property
    def _log_loss_disagrees(self) -> bool:
        return (self.log_loss_difference < 0) != (self.accuracy_difference > 0)

    def _log_loss_remark(self) -> str:
        if not self.log_loss_interval.excludes_zero:
            return ""
        sign = -1 if self.log_loss_difference < 0 else 1
        bounds = sorted(
            sign * bound for bound in (self.log_loss_interval.low, self.log_loss_interval.high)
        )
        return (
            f" Its log-loss is clearly {'lower' if sign < 0 else 'higher'}, by "
            f"{sign * self.log_loss_difference:.3f} nats "
            f"(95 % interval {bounds[0]:.3f} to {bounds[1]:.3f})."
        )


def compare(  # noqa: PLR0913 - two predictions, and what of them decides
    ensemble_log_probabilities: Float[np.ndarray, "images classes"],
    single_log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    *,
    metric: MetricName = "accuracy",
    decision: Decision = MOST_PROBABLE,
    single_decision: Decision | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare an ensemble with the best single model on the same held-out images.

    Args:
        ensemble_log_probabilities: Predictions of the ensemble.
        single_log_probabilities: Predictions of the single model, with its temperature.
        labels: The true classes.
        metric: What decides. Accuracy, and log-loss, which is told anyway, leave it to McNemar's
            test; balanced accuracy and macro F1 have an interval of their own.
        decision: How the predictions of the ensemble become labels.
        single_decision: How those of the single model do; None: in the same way.
        n_resamples: Bootstrap samples behind the interval of the log-loss.
        seed: Of the bootstrap.

    Returns:
        The differences, their intervals, and the verdict.

    Raises:
        EnsembleError: There is no image to compare on.
    """
    if len(labels) == 0:
        raise EnsembleError("a comparison needs at least one test image, got none.")
    scores = (
        decision.score(ensemble_log_probabilities),
        (single_decision or decision).score(single_log_probabilities),
    )
    ensemble_right, single_right = (each.argmax(axis=1) == labels for each in scores)
    n_better = int((ensemble_right & ~single_right).sum())
    n_worse = int((single_right & ~ensemble_right).sum())
    p_value = mcnemar(n_better, n_worse)
    gains = image_log_losses(ensemble_log_probabilities, labels) - image_log_losses(
        single_log_probabilities, labels
    )
    generator = np.random.default_rng(seed)
    named = (
        _compare_by(metric, *scores, labels, generator)
        if metric in ("balanced_accuracy", "macro_f1")
        else None
    )
    return Comparison(
        n_images=len(labels),
        accuracy=float(ensemble_right.mean()),
        single_accuracy=float(single_right.mean()),
        accuracy_difference=(n_better - n_worse) / len(labels),
        accuracy_interval=find_paired_interval(n_better, n_worse, len(labels)),
        log_loss_difference=float(gains.mean()),
        log_loss_interval=_percentiles(resample_mean(gains, labels, n_resamples, generator)),
        only_ensemble_right=n_better,
        only_single_right=n_worse,
        p_value=p_value,
        smallest_visible_difference=find_smallest_visible(n_better + n_worse, len(labels)),
        verdict=_decide_by_interval(named.gain_interval)
        if named
        else _decide(n_better, n_worse, p_value),
        named=named,
    )


def mcnemar(n_only_first: int, n_only_second: int) -> float:
    """Return the exact two-sided p-value of two classifiers being right equally often.

    Args:
        n_only_first: Images that only the first gets right.
        n_only_second: Images that only the second gets right.

    Returns:
        The p-value; 1 when they never differ.
    """
    n_discordant = n_only_first + n_only_second
    if n_discordant == 0:
        return 1.0
    # As `scipy.stats.binomtest` finds it for a fair coin; that takes a second to import, and this
    # a fifth, which `status` shall not wait for.
    from scipy.special import bdtr  # noqa: PLC0415

    return min(1.0, 2 * float(bdtr(min(n_only_first, n_only_second), n_discordant, 0.5)))


def find_wilson_interval(n_right: int, n_images: int) -> Interval:
    """Return the 95 % interval of a share.

    Source:
        Wilson 1927; holds for shares near 0 and 1, where the textbook interval does not.
    """
    share = n_right / n_images
    spread = _Z**2 / n_images
    center = share + spread / 2
    half = _Z * np.sqrt(share * (1 - share) / n_images + spread / (4 * n_images))
    low, high = (center - half) / (1 + spread), (center + half) / (1 + spread)
    return Interval(low=max(0.0, float(low)), high=min(1.0, float(high)))


def find_paired_interval(n_only_first: int, n_only_second: int, n_images: int) -> Interval:
    """Return the 95 % interval of a paired difference of two shares.

    A bootstrap of so few differing images as 180 tests give is too narrow, and has no width at
    all where they never differ; it then contradicts McNemar's p beside it.

    Args:
        n_only_first: Images that only the first gets right.
        n_only_second: Images that only the second gets right.
        n_images: Images in all.

    Source:
        Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
        proportions based on paired data": one image is added to each differing count.
    """
    n_adjusted = n_images + 2
    first, second = (n_only_first + 1) / n_adjusted, (n_only_second + 1) / n_adjusted
    half = _Z * np.sqrt((first + second - (first - second) ** 2) / n_adjusted)
    center = first - second
    return Interval(low=max(-1.0, float(center - half)), high=min(1.0, float(center + half)))


def find_independent_interval(
    n_right_first: int, n_first: int, n_right_second: int, n_second: int
) -> Interval:
    """Return the 95 % interval of the difference of two shares of unrelated images.

    Args:
        n_right_first: Right ones among the first.
        n_first: Images of the first.
        n_right_second: Right ones among the second.
        n_second: Images of the second.

    Returns:
        Of the first share minus the second.

    Source:
        Newcombe 1998, "Interval estimation for the difference between independent proportions",
        method 10: the distances to Wilson's limits, added as squares.
    """
    first, second = n_right_first / n_first, n_right_second / n_second
    of_first = find_wilson_interval(n_right_first, n_first)
    of_second = find_wilson_interval(n_right_second, n_second)
    below = math.hypot(first - of_first.low, of_second.high - second)
    above = math.hypot(of_first.high - first, second - of_second.low)
    return Interval(low=first - second - below, high=first - second + above)


def find_smallest_visible(n_discordant: int, n_images: int) -> float:
    """Return about the smallest difference in accuracy that could have been established.

    Its standard error is close to sqrt(d / n), where d is the share of images that one of the
    two alone gets right; and no fewer than 6 such images can bring the exact p below 0.05.
    """
    error = float(np.sqrt(n_discordant)) / n_images
    return max(_Z * error, _MIN_DISCORDANT / n_images)


def _compare_by(
    metric: MetricName,
    ensemble_scores: Float[np.ndarray, "images classes"],
    single_scores: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    generator: np.random.Generator,
) -> NamedDifference:
    """Compare by a metric of labels, with a paired bootstrap that keeps each class's images."""
    compute = METRICS[metric].compute

    def gain(rows: Int[np.ndarray, " rows"]) -> float:
        return compute(ensemble_scores[rows], labels[rows]) - compute(
            single_scores[rows], labels[rows]
        )

    of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    gains = np.array(
        [
            gain(np.concatenate([generator.choice(rows, len(rows)) for rows in of_class]))
            for _ in range(N_RESAMPLES_OF_A_METRIC)
        ]
    )
    return NamedDifference(
        metric=metric,
        ensemble=compute(ensemble_scores, labels),
        single=compute(single_scores, labels),
        gain=gain(np.arange(len(labels))),
        gain_interval=_percentiles(gains),
    )


def _decide_by_interval(interval: Interval) -> Verdict:
    if not interval.excludes_zero:
        return "not distinguishable"
    return "better" if interval.low > 0 else "worse"


def _decide(n_better: int, n_worse: int, p_value: float) -> Verdict:
    if p_value >= SIGNIFICANCE:
        return "not distinguishable"
    return "better" if n_better > n_worse else "worse"


def resample_mean(
    values: Float64[np.ndarray, " images"],
    labels: Int[np.ndarray, " images"],
    n_resamples: int,
    generator: np.random.Generator,
) -> Float64[np.ndarray, " resamples"]:
    """Resample the mean of one value per image, class by class.

    Args:
        values: One per image.
        labels: The true classes.
        n_resamples: Means to return.
        generator: Another value of the same images, resampled by a generator that begins alike,
            is resampled in pairs with this one.
    """
    totals = np.zeros(n_resamples)
    for label in np.unique(labels):
        of_class = values[labels == label]
        n_rows = max(1, _BLOCK // len(of_class))
        for first in range(0, n_resamples, n_rows):
            block = totals[first : first + n_rows]
            shape = (len(block), len(of_class))
            block += of_class[generator.integers(len(of_class), size=shape)].sum(axis=1)
    return totals / len(labels)


def _percentiles(values: Float64[np.ndarray, " resamples"]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(low=float(low), high=float(high))


def _format_p(p_value: float) -> str:
    if p_value < 1e-300:
        return "p < 1e-300"
    return f"p = {p_value:.2f}" if p_value >= 0.1 else f"p = {p_value:.2g}"

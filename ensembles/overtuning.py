"""How much the score that the search looked at flatters the trial that it preferred.

The best trial of many is the best on the stop images partly by luck, and its epochs and
temperature were chosen there too. Its score on the ens images, on which the search chose nothing,
tells how large that part is. The figure is for people: a search that acted on it would make the
ens images part of the search.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int
from pydantic import ConfigDict

from ensembles.comparison import Interval, find_independent_interval
from ensembles.errors import EnsembleError
from ensembles.metrics import image_log_losses

_Z = 1.959964
"""Of a two-sided 95 % interval."""

OvertuningVerdict: TypeAlias = Literal["flattered", "not distinguishable", "not flattered"]


@dataclass(frozen=True, kw_only=True)
class Overtuning:
    """One trial's figures on the stop images beside those on the ens images."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    n_stop: int
    n_ens: int
    stop_log_loss: float
    ens_log_loss: float
    log_loss_optimism: float
    """Ens minus stop, in nats; above 0 the stop score promised too much."""
    log_loss_interval: Interval
    stop_accuracy: float
    ens_accuracy: float
    accuracy_optimism: float
    """Stop minus ens, as a share; above 0 the stop score promised too much."""
    accuracy_interval: Interval
    verdict: OvertuningVerdict
    """`flattered`, where an interval lies above 0, which happens by chance to at most 5 % of
    trials; `not flattered`, where one lies below 0 and none above."""

    def sentence(self) -> str:
        """Say in plain English what was found."""
        loss, right = self.log_loss_interval, self.accuracy_interval
        found = {
            "flattered": "The search's own score flatters the best trial",
            "not distinguishable": "The search's own score is not visibly too good",
            "not flattered": "The search's own score does not flatter the best trial",
        }[self.verdict]
        return (
            f"{found}: log-loss {self.stop_log_loss:.3f} on {self.n_stop:,} stop images, "
            f"{self.ens_log_loss:.3f} on {self.n_ens:,} ens images "
            f"(difference {self.log_loss_optimism:+.3f} nats, "
            f"95 % interval {loss.low:+.3f} to {loss.high:+.3f}); accuracy "
            f"{100 * self.stop_accuracy:.1f} % and {100 * self.ens_accuracy:.1f} % "
            f"({100 * self.accuracy_optimism:+.1f} points, "
            f"95 % interval {100 * right.low:+.1f} to {100 * right.high:+.1f})."
        )

    def to_json(self) -> dict[str, object]:
        """Return the figures as JSON values."""
        return asdict(self)


def measure_overtuning(
    *,
    stop: tuple[Float[np.ndarray, "stop_images classes"], Int[np.ndarray, " stop_images"]],
    ens: tuple[Float[np.ndarray, "ens_images classes"], Int[np.ndarray, " ens_images"]],
) -> Overtuning:
    """Measure how much better a model looks on the images that chose it.

    The two sets share no image, so nothing is paired. All intervals have a closed form: a
    trial's end costs no bootstrap.

    Args:
        stop: Log-probabilities and labels of the images that the search looked at.
        ens: The same model's, for images on which the search chose nothing.

    Returns:
        Both scores, their differences with 95 % intervals, and a verdict.

    Raises:
        EnsembleError: One of the sets has fewer than 2 images.

    Source:
        Schneider, Bischl and Feurer 2025, "Overtuning in hyperparameter optimization". This gap of
        one trial is what they call meta-overfitting; their overtuning compares the trial with
        those that were best before it.
    """
    stop_losses, stop_right = _score(*stop)
    ens_losses, ens_right = _score(*ens)
    if min(len(stop_losses), len(ens_losses)) < 2:
        raise EnsembleError(
            "a comparison of stop with ens needs at least 2 images of each, "
            f"got {len(stop_losses)} and {len(ens_losses)}."
        )
    stop_log_loss, ens_log_loss = float(stop_losses.mean()), float(ens_losses.mean())
    stop_accuracy, ens_accuracy = stop_right / len(stop_losses), ens_right / len(ens_losses)
    optimism = ens_log_loss - stop_log_loss
    half = _Z * float(np.sqrt(_error(ens_losses) ** 2 + _error(stop_losses) ** 2))
    loss_interval = Interval(low=optimism - half, high=optimism + half)
    accuracy_interval = find_independent_interval(
        stop_right, len(stop_losses), ens_right, len(ens_losses)
    )
    return Overtuning(
        n_stop=len(stop_losses),
        n_ens=len(ens_losses),
        stop_log_loss=stop_log_loss,
        ens_log_loss=ens_log_loss,
        log_loss_optimism=optimism,
        log_loss_interval=loss_interval,
        stop_accuracy=stop_accuracy,
        ens_accuracy=ens_accuracy,
        accuracy_optimism=stop_accuracy - ens_accuracy,
        accuracy_interval=accuracy_interval,
        verdict=_decide((loss_interval, accuracy_interval)),
    )


def _score(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> tuple[Float64[np.ndarray, " images"], int]:
    n_right = int((log_probabilities.argmax(axis=1) == labels).sum())
    return image_log_losses(log_probabilities, labels), n_right


def _error(values: Float64[np.ndarray, " images"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _decide(intervals: Sequence[Interval]) -> OvertuningVerdict:
    if any(interval.low > 0 for interval in intervals):
        return "flattered"
    if any(interval.high < 0 for interval in intervals):
        return "not flattered"
    return "not distinguishable"

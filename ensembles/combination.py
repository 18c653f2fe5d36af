"""How the predictions of an ensemble's members become one distribution.

The record of a fitted ensemble, small enough to read in a manifest; NumPy alone applies it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ensembles.errors import EnsembleError
from ensembles.methods import Method
from ensembles.pool import normalize_log_probabilities

Space = Literal["probability", "logarithm", "vote", "stack"]

_TIE_BREAK = 1e-3
"""What the mean opinion adds to shares of votes: less than one vote of 999, so it only decides
between classes with equally many votes, and keeps every logarithm finite."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Weights of the members, and the space in which they are averaged."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: Method
    """What fitted it."""
    space: Space
    """`probability`: mean of probabilities; `logarithm`: mean of their logarithms; `vote`: shares
    of votes, not probabilities of being right; `stack`: logarithms weighted class by class."""
    weights: tuple[float, ...]
    """One per member, at least 0; they sum to 1, but for `logarithm` and `stack`."""
    temperature: float = 1.0
    """Divides the logarithms at the end; above 1 makes the ensemble less sure."""
    class_weights: tuple[tuple[float, ...], ...] = ()
    """`stack` alone: for each member, one weight per class, of either sign."""
    class_biases: tuple[float, ...] = ()
    """`stack` alone: one per class."""

    def __post_init__(self) -> None:
        """Refuse what no fit returns."""
        _check_numbers(self)
        if not self.weights or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise EnsembleError(
                f"a combination needs weights of at least 0, not all 0, got {list(self.weights)}."
            )
        if self.space in ("probability", "vote") and abs(sum(self.weights) - 1) > 1e-6:
            raise EnsembleError(
                f"weights in {self.space} space must sum to 1, got {sum(self.weights)}."
            )
        if self.temperature <= 0:
            raise EnsembleError(f"a temperature must be above 0, got {self.temperature}.")
        _check_class_weights(self)

    @property
    def n_members(self) -> int:
        """Number of members whose predictions `combine` wants."""
        return len(self.weights)

    def select(self, members: Sequence[int]) -> "Combination":
        """Return the combination of some members, or of all in another order.

        Args:
            members: Their positions; those that are left out must have no weight.

        Raises:
            EnsembleError: What is left is no combination.
        """
        rows = self.class_weights
        return replace(
            self,
            weights=tuple(self.weights[member] for member in members),
            class_weights=tuple(rows[member] for member in members) if rows else (),
        )

    def spread(self, n_networks: Sequence[int]) -> "Combination":
        """Return the same combination of the networks behind the members.

        A member that is a mean of networks is the mean of whatever is averaged here: of their
        probabilities, of their logarithms (as they are, for `stack`; normalized anew or not, for
        `logarithm`), or of their votes. So each network gets its part of the member's weight.

        Args:
            n_networks: Behind each member; their predictions come in the order of the members.
        """
        shares = [1 / count for count in n_networks for _ in range(count)]
        places = [place for place, count in enumerate(n_networks) for _ in range(count)]
        rows = self.class_weights
        return replace(
            self,
            weights=tuple(
                self.weights[place] * share for place, share in zip(places, shares, strict=True)
            ),
            class_weights=tuple(
                tuple(weight * share for weight in rows[place])
                for place, share in zip(places, shares, strict=True)
            )
            if rows
            else (),
        )

    def combine(
        self, log_probabilities: Float[np.ndarray, "members images classes"]
    ) -> Float[np.ndarray, "images classes"]:
        """Combine the members' predictions into one distribution for each image.

        Args:
            log_probabilities: Natural logarithms, the members in the order of the weights.

        Returns:
            Normalized log-probabilities, float64.

        Raises:
            EnsembleError: Another number of members or classes than was fitted.
        """
        if len(log_probabilities) != self.n_members:
            raise EnsembleError(
                f"the combination has {self.n_members} members, "
                f"got predictions of {len(log_probabilities)}."
            )
        n_classes = log_probabilities.shape[2]
        if self.class_biases and len(self.class_biases) != n_classes:
            raise EnsembleError(
                f"the combination has {len(self.class_biases)} classes, "
                f"got predictions for {n_classes}."
            )
        scores = _COMBINERS[self.space](self, log_probabilities) / self.temperature
        scores -= scores.max(axis=1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return scores

    def to_json(self) -> dict[str, object]:
        """Return the combination as JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> "Combination":
        """Read a combination from JSON values.

        Args:
            values: What `to_json` returned, as such or parsed from JSON text.

        Returns:
            The same combination.

        Raises:
            EnsembleError: A key is missing or unknown, or a value cannot be used.
        """
        try:
            return _ADAPTER.validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise EnsembleError(
                f"combination: {where}: {first['msg']}, got {first['input']!r}."
            ) from error
        except TypeError as error:
            raise EnsembleError(f"combination: {error}.") from error


_ADAPTER = TypeAdapter(Combination)


def _check_numbers(combination: Combination) -> None:
    rows = (combination.weights, combination.class_biases, *combination.class_weights)
    numbers = [combination.temperature, *(number for row in rows for number in row)]
    if not all(math.isfinite(number) for number in numbers):
        raise EnsembleError("a combination needs finite numbers throughout.")


def _check_class_weights(combination: Combination) -> None:
    n_classes = len(combination.class_biases)
    if combination.space != "stack":
        if combination.class_weights or n_classes:
            raise EnsembleError("class weights belong to stacking alone.")
    elif (
        n_classes < 2
        or len(combination.class_weights) != combination.n_members
        or any(len(row) != n_classes for row in combination.class_weights)
    ):
        raise EnsembleError(
            "stacking needs one bias per class and, for each of its members, one weight per class."
        )


def _mean_probabilities(
    combination: Combination, log_probabilities: Float[np.ndarray, "members images classes"]
) -> Float[np.ndarray, "images classes"]:
    # No logarithm is below -30, so neither the sum nor its logarithm can leave the range.
    total = np.zeros(log_probabilities.shape[1:])
    for weight, member in zip(combination.weights, log_probabilities, strict=True):
        total += weight * np.exp(normalize_log_probabilities(member))
    log_mean: np.ndarray = np.log(total)
    return log_mean


def _mean_logarithms(
    combination: Combination, log_probabilities: Float[np.ndarray, "members images classes"]
) -> Float[np.ndarray, "images classes"]:
    total = np.zeros(log_probabilities.shape[1:])
    for weight, member in zip(combination.weights, log_probabilities, strict=True):
        total += weight * normalize_log_probabilities(member)
    return total


def _vote_shares(
    combination: Combination, log_probabilities: Float[np.ndarray, "members images classes"]
) -> Float[np.ndarray, "images classes"]:
    shares = _TIE_BREAK * np.exp(_mean_probabilities(combination, log_probabilities))
    images = np.arange(shares.shape[0])
    for weight, member in zip(combination.weights, log_probabilities, strict=True):
        shares[images, member.argmax(axis=1)] += weight
    log_shares: np.ndarray = np.log(shares)
    return log_shares


def _class_wise_logarithms(
    combination: Combination, log_probabilities: Float[np.ndarray, "members images classes"]
) -> Float[np.ndarray, "images classes"]:
    total = np.tile(np.asarray(combination.class_biases), (log_probabilities.shape[1], 1))
    for weights, member in zip(combination.class_weights, log_probabilities, strict=True):
        total += np.asarray(weights) * normalize_log_probabilities(member)
    return total


_COMBINERS: Mapping[
    Space,
    Callable[
        [Combination, Float[np.ndarray, "members images classes"]],
        Float[np.ndarray, "images classes"],
    ],
] = {
    "probability": _mean_probabilities,
    "logarithm": _mean_logarithms,
    "vote": _vote_shares,
    "stack": _class_wise_logarithms,
}

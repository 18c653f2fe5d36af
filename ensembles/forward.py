"""Choosing a few members for a fit: add the most promising one, fit all weights again, repeat.

Dropping the lightest members of a large fit instead was measured, for five of 76 models: 70.2 %
and 0.843 nats against 71.0 % and 0.821.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ensembles.budget import Budget, Limit

N_TRIES = 6
"""Candidates, by steepest slope, that are fitted before one is chosen."""
MIN_SLOPE = 1e-5
"""Nats per unit of weight; a flatter candidate is not worth a member."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardFit:
    """Members, the weights fitted to them, and the loss they reach."""

    members: list[int]
    weights: Float64[np.ndarray, " members"]
    loss: float

    def scattered(self, n_models: int) -> Float64[np.ndarray, " models"]:
        """Return one weight per model, 0 for those that are no members."""
        full = np.zeros(n_models)
        full[self.members] = self.weights
        return full

    def without_idle(self) -> "ForwardFit":
        """Return the same fit without the members of weight 0."""
        used = np.flatnonzero(self.weights)
        return ForwardFit(
            members=[self.members[position] for position in used],
            weights=self.weights[used],
            loss=self.loss,
        )


def select_forward(
    first: ForwardFit,
    fit: Callable[[list[int]], ForwardFit],
    slopes: Callable[[ForwardFit], Float64[np.ndarray, " models"]],
    *,
    max_members: int,
    limits: Sequence[Limit] = (),
) -> ForwardFit:
    """Grow a fit member by member; all weights are fitted again each time.

    Args:
        first: Where to start; may have no members.
        fit: Fits weights, at least 0, to the members it is given.
        slopes: How the loss changes with each model's weight, at a fit.
        max_members: Most members of weight above 0.
        limits: What the members together may cost; who does not fit is not tried.

    Returns:
        The fit after which no model's slope is below -1e-5, or that is full.
    """
    current = first.without_idle()
    budget = Budget(max_members=max_members, limits=tuple(limits))
    # A member whose weight falls to 0 makes room for another, so rounds need their own limit.
    for _ in range(4 * max_members):
        if len(current.members) >= max_members:
            break
        slope = slopes(current)
        slope[current.members] = np.inf
        if limits:
            slope[[not budget.fits([*current.members, each]) for each in range(len(slope))]] = (
                np.inf
            )
        tries = np.argsort(slope, kind="stable")[:N_TRIES]
        fits = [
            fit([*current.members, int(index)]) for index in tries if slope[index] < -MIN_SLOPE
        ]
        if not fits:
            break
        best = min(fits, key=lambda candidate: candidate.loss)
        if best.loss >= current.loss:
            break
        current = best.without_idle()
    return current

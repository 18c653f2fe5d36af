"""Running an ensemble's members one after another, and stopping when they are sure enough.

Most images are easy: the cheapest members agree on them, and the others would change nothing.
Each prefix of the members has weights of its own; the last stage is the ensemble itself, so the
worst case costs and answers what the ensemble does. `ensembles.cascade_fitting` makes cascades.

Source:
    Wang et al. 2022, "Wisdom of committees: an overlooked approach to faster and more accurate
    models": cascades that exit on the largest probability.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import ConfigDict

from ensembles.combination import Combination
from ensembles.errors import EnsembleError

Predict: TypeAlias = Callable[[int, Int64[np.ndarray, " rows"]], Float[np.ndarray, "rows classes"]]
"""Runs one member, by its position in the ensemble, on some of the images."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What decides after some of the members have run."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    combination: Combination
    """Of the members that have run, in the order of the cascade."""
    threshold: float
    """An image whose largest probability is at least this goes no further; 0 at the end."""

    def __post_init__(self) -> None:
        """Refuse a threshold that is no probability."""
        if not 0 <= self.threshold <= 1:
            raise EnsembleError(f"a threshold must lie between 0 and 1, got {self.threshold}.")

    @property
    def n_members(self) -> int:
        """How many members have run when this stage decides."""
        return self.combination.n_members


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """An order of an ensemble's members, and the stages that may decide on the way."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    order: tuple[int, ...]
    """Positions of the ensemble's members, in the order in which they run."""
    stages: tuple[Stage, ...]
    """By the number of members that have run; a member that lets no image go has none."""

    def __post_init__(self) -> None:
        """Refuse stages that do not lead to the end, or an order that is none."""
        if sorted(self.order) != list(range(len(self.order))):
            raise EnsembleError(f"a cascade's order must name each member once, got {self.order}.")
        sizes = [stage.n_members for stage in self.stages]
        if sizes != sorted(set(sizes)) or sizes[-1:] != [len(self.order)]:
            raise EnsembleError(
                f"a cascade of {len(self.order)} members needs stages of more and more members "
                f"up to {len(self.order)}, got {sizes}."
            )
        if self.stages[-1].threshold != 0:
            raise EnsembleError(
                "the last stage of a cascade must decide everything: its threshold must be 0, "
                f"got {self.stages[-1].threshold}."
            )

    def run(
        self, log_probabilities: Float[np.ndarray, "members images classes"]
    ) -> "CascadeResult":
        """Decide each image at the first stage that is sure enough of it.

        Args:
            log_probabilities: Of all members, in the ensemble's order, as if all had run.

        Returns:
            The predictions, and how many members each image needed.

        Raises:
            EnsembleError: Predictions of another number of members.
        """
        if len(log_probabilities) != len(self.order):
            raise EnsembleError(
                f"the cascade has {len(self.order)} members, "
                f"got predictions of {len(log_probabilities)}."
            )
        _, n_images, n_classes = log_probabilities.shape
        return self.run_lazily(
            lambda position, rows: log_probabilities[position, rows],
            n_images=n_images,
            n_classes=n_classes,
        )

    def run_lazily(self, predict: Predict, *, n_images: int, n_classes: int) -> "CascadeResult":
        """Decide each image, running a member only on the images that still need it.

        Args:
            predict: Runs one member on some of the images.
            n_images: How many images there are.
            n_classes: How many classes.

        Returns:
            The predictions, and how many members each image needed.
        """
        decided = np.zeros((n_images, n_classes))
        n_run = np.zeros(n_images, dtype=np.int64)
        waiting = np.arange(n_images)
        said: list[np.ndarray] = []
        stages = {stage.n_members: stage for stage in self.stages}
        for n_members, position in enumerate(self.order, start=1):
            if not len(waiting):
                break
            said.append(predict(position, waiting))
            if n_members not in stages:
                continue
            stage = stages[n_members]
            combined = stage.combination.combine(np.stack(said))
            sure = _is_sure(combined, stage.threshold)
            decided[waiting[sure]] = combined[sure]
            n_run[waiting[sure]] = n_members
            waiting, said = waiting[~sure], [each[~sure] for each in said]
        return CascadeResult(log_probabilities=decided, n_members_run=n_run)


@dataclass(frozen=True, kw_only=True, eq=False)
class CascadeResult:
    """What a cascade says, and what it took."""

    log_probabilities: Float64[np.ndarray, "images classes"]
    n_members_run: Int64[np.ndarray, " images"]

    def cost_share(self, cascade: Cascade, costs: Float[np.ndarray, " members"]) -> float:
        """Return the mean cost of an image, as a share of running all members.

        Args:
            cascade: The cascade that gave this result.
            costs: One for each member, in the ensemble's order.
        """
        spent = np.cumsum(costs[list(cascade.order)])
        return float(spent[self.n_members_run - 1].mean() / spent[-1])


def _is_sure(
    log_probabilities: Float64[np.ndarray, "images classes"], threshold: float
) -> Bool[np.ndarray, " images"]:
    sure: np.ndarray = np.exp(log_probabilities.max(axis=1)) >= threshold
    return sure

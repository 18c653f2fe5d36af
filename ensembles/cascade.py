"""Running an ensemble's members one after another, and stopping when they are sure enough.

Most images are easy: the cheapest members agree on them, and the others would change nothing.
Each prefix of the members gets weights of its own, fitted to the same images as the ensemble; the
last stage is the ensemble itself, so the worst case costs and answers what the ensemble does.

Source:
    Wang et al. 2022, "Wisdom of committees: an overlooked approach to faster and more accurate
    models": cascades that exit on the largest probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import ConfigDict

from ensembles.builder import Ensemble, build
from ensembles.combination import Combination
from ensembles.errors import EnsembleError
from ensembles.methods import Method
from ensembles.pool import Pool

MAX_LOSS = 0.001
"""Share of the fitting images that the cascade may lose against the full ensemble."""
_N_THRESHOLDS = 400
"""Thresholds that are tried, at equal steps of the confidences' ranks."""


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
    """An order of an ensemble's members, and a stage after each."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    order: tuple[int, ...]
    """Positions of the ensemble's members, in the order in which they run."""
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Refuse stages that are not one for each member, or an order that is none."""
        if sorted(self.order) != list(range(len(self.order))):
            raise EnsembleError(f"a cascade's order must name each member once, got {self.order}.")
        sizes = [stage.n_members for stage in self.stages]
        if sizes != list(range(1, len(self.order) + 1)) or self.stages[-1].threshold != 0:
            raise EnsembleError(
                "a cascade needs a stage after each member, and the last must decide everything."
            )

    def run(
        self, log_probabilities: Float[np.ndarray, "members images classes"]
    ) -> "CascadeResult":
        """Decide each image at the first stage that is sure enough of it.

        Args:
            log_probabilities: Of all members, in the ensemble's order, as if all had run.

        Returns:
            The predictions, and how many members each image needed.
        """
        if len(log_probabilities) != len(self.order):
            raise EnsembleError(
                f"the cascade has {len(self.order)} members, "
                f"got predictions of {len(log_probabilities)}."
            )
        ordered = log_probabilities[list(self.order)]
        decided = np.zeros(ordered.shape[1:])
        n_run = np.zeros(ordered.shape[1], dtype=np.int64)
        for stage in self.stages:
            waiting = np.flatnonzero(n_run == 0)
            if not len(waiting):
                break
            combined = stage.combination.combine(ordered[: stage.n_members, waiting])
            sure = _is_sure(combined, stage.threshold)
            decided[waiting[sure]] = combined[sure]
            n_run[waiting[sure]] = stage.n_members
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


def fit_cascade(ensemble: Ensemble, pool: Pool, *, max_loss: float = MAX_LOSS) -> Cascade:
    """Turn an ensemble into a cascade that loses almost nothing.

    The members run from the cheapest to the dearest, or from the one of lowest log-loss to that
    of the highest: whichever order costs less on the fitting images. One threshold serves all
    stages: the smallest at which, and above which, no more than `max_loss` of the accuracy goes.

    Args:
        ensemble: An ensemble that was fitted on the pool; not a vote, whose shares are no
            probabilities.
        pool: The images that the ensemble was fitted on; its costs are those of the members.
        max_loss: Accuracy on these images that may be lost, as a share.

    Returns:
        The cascade.

    Raises:
        EnsembleError: The ensemble is a vote, or a member is not in the pool.
    """
    if ensemble.combination.space == "vote":
        raise EnsembleError("votes are no probabilities, so a cascade cannot exit on them.")
    members = pool.select_names(ensemble.names)
    orders = {
        tuple(int(position) for position in np.argsort(keys, kind="stable"))
        for keys in (members.costs, members.log_losses())
    }
    fitted = [_fit_order(ensemble, members, order, max_loss) for order in sorted(orders)]
    return min(fitted, key=lambda each: _cost_share(each, members))


def _cost_share(cascade: Cascade, members: Pool) -> float:
    return cascade.run(members.log_probabilities).cost_share(cascade, members.costs)


def _fit_order(
    ensemble: Ensemble, members: Pool, order: Sequence[int], max_loss: float
) -> Cascade:
    n_members = len(order)
    combinations = [
        _fit_prefix(ensemble, members.select(order[:n_run])) for n_run in range(1, n_members)
    ]
    combinations.append(_reordered(ensemble.combination, order))
    ordered = members.log_probabilities[list(order)]
    combined = [each.combine(ordered[: each.n_members]) for each in combinations]
    threshold = _choose_threshold(combined, members.labels, max_loss)
    return Cascade(
        order=tuple(order),
        stages=tuple(
            Stage(combination=each, threshold=threshold if each.n_members < n_members else 0.0)
            for each in combinations
        ),
    )


def _fit_prefix(ensemble: Ensemble, prefix: Pool) -> Combination:
    """Fit the members that have run, by the ensemble's own method where that can be had."""
    method: Method = "llp" if ensemble.method in ("stack", "single") else ensemble.method
    fitted = build(prefix, method=method, max_members=prefix.n_models)
    weights = np.zeros(prefix.n_models)
    weights[list(fitted.members)] = fitted.combination.weights
    return replace(fitted.combination, weights=tuple(weights.tolist()))


def _reordered(combination: Combination, order: Sequence[int]) -> Combination:
    rows = combination.class_weights
    return replace(
        combination,
        weights=tuple(combination.weights[position] for position in order),
        class_weights=tuple(rows[position] for position in order) if rows else (),
    )


def _choose_threshold(
    combined: Sequence[Float64[np.ndarray, "images classes"]],
    labels: Int64[np.ndarray, " images"],
    max_loss: float,
) -> float:
    """Return the smallest threshold at and above which little enough is lost."""
    right = np.stack([each.argmax(axis=1) == labels for each in combined])
    if len(combined) == 1:
        return 0.0
    confidences = np.exp(np.stack([each.max(axis=1) for each in combined[:-1]]))
    at_the_end = np.ones((1, len(labels)), dtype=np.bool_)
    allowed = right[-1].mean() - max_loss
    best = 1.0
    for threshold in np.quantile(confidences, np.linspace(1, 0, _N_THRESHOLDS)):
        exits = np.vstack([confidences >= threshold, at_the_end]).argmax(axis=0)
        if right[exits, np.arange(len(labels))].mean() < allowed - 1e-12:
            break
        best = float(threshold)
    return min(best, 1.0)


def _is_sure(
    log_probabilities: Float64[np.ndarray, "images classes"], threshold: float
) -> Bool[np.ndarray, " images"]:
    sure: np.ndarray = np.exp(log_probabilities.max(axis=1)) >= threshold
    return sure

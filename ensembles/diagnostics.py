"""Why these members: what each adds, and how much their mistakes have in common.

What a member adds is measured by leaving it out and fitting the rest anew, by the same method: the
others take over a part of its work, and only what they cannot is its own.
"""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from pydantic import ConfigDict

from ensembles.builder import Ensemble, build
from ensembles.methods import Method
from ensembles.metrics import accuracy, log_loss
from ensembles.pool import Pool

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class MemberExplanation:
    """What one member knows, and what the ensemble would lose without it."""

    name: str
    weight: float
    """As in the ensemble."""
    accuracy: float
    """Of the member alone."""
    log_loss: float
    """Of the member alone, in nats."""
    log_loss_added: float | None
    """How much higher the log-loss is without it, the rest fitted anew, in nats; below 0 where
    the rest does better alone. None for the only member."""
    accuracy_added: float | None
    """How much lower the accuracy is without it, as a share; None for the only member."""
    only_right: tuple[int, ...]
    """Rows of the pool's images that no other member gets right."""
    n_corrected: int
    """Images that it gets wrong and the ensemble gets right."""
    n_spoiled: int
    """Images that it gets right and the ensemble gets wrong."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The members of an ensemble beside and against each other."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: Method
    n_images: int
    accuracy: float
    """Of the ensemble."""
    log_loss: float
    """Of the ensemble, in nats."""
    is_fresh: bool
    """Whether the images are others than those of the fit. If not, all figures flatter, and a
    member that was chosen for its luck seems to add something."""
    members: tuple[MemberExplanation, ...]
    """In the ensemble's order, heaviest first."""
    share_any_right: float
    """Images that at least one member gets right: no choice among answers could do better."""
    shared_errors: Matrix
    """For each two members, the images that both get wrong, as a share of those that either gets
    wrong; 1 where neither ever errs."""
    double_faults: Matrix
    """For each two members, the share of all images that both get wrong."""
    effective_by_weight: float
    """How many equally heavy members would have weights as spread out as these."""
    effective_by_errors: float
    """The same where members that share errors count as partly the same: from 1, all err alike,
    to `effective_by_weight`, no error is shared."""

    def to_json(self) -> dict[str, object]:
        """Return the figures as JSON values."""
        return asdict(self)


def explain_members(
    ensemble: Ensemble, pool: Pool, *, fresh: Pool | None = None, seed: int = 0
) -> Explanation:
    """Tell what each member of an ensemble adds.

    Args:
        ensemble: As `build` returned it.
        pool: The pool that it was fitted on; the rest is fitted anew on it.
        fresh: Predictions of the members for other images, to measure on; default: the same pool,
            whose figures flatter.
        seed: As for `build`.

    Returns:
        Figures of each member, of each two, and of all.

    Raises:
        EnsembleError: A member is missing in one of the pools.

    Source:
        Shared errors: Jaccard's index of the sets of errors. Double faults: Giacinto and Roli
        2001, "Design of effective neural network ensembles for image classification purposes".
        Effective numbers: the exponential of Shannon's entropy, Jost 2006, "Entropy and
        diversity", and of order 1 of Leinster and Cobbold 2012, "Measuring diversity: the
        importance of species similarity", with shared errors as similarities.
    """
    measured = pool if fresh is None else fresh
    predictions = ensemble.predict(measured)
    log_probabilities = measured.select_names(ensemble.names).log_probabilities
    members_right: np.ndarray = log_probabilities.argmax(axis=2) == measured.labels
    wrong = (~members_right).astype(np.float64)
    shares = np.array(ensemble.combination.weights) / sum(ensemble.combination.weights)
    similarities = _share_errors(wrong)
    remainders = _leave_out_each(ensemble, pool, seed)
    return Explanation(
        method=ensemble.method,
        n_images=measured.n_images,
        accuracy=accuracy(predictions, measured.labels),
        log_loss=log_loss(predictions, measured.labels),
        is_fresh=fresh is not None,
        members=tuple(
            _explain(
                ensemble,
                place,
                log_probabilities[place],
                predictions=predictions,
                without=None if remainder is None else remainder.predict(measured),
                labels=measured.labels,
                n_right=members_right.sum(axis=0),
            )
            for place, remainder in enumerate(remainders)
        ),
        share_any_right=float(members_right.any(axis=0).mean()),
        shared_errors=_to_matrix(similarities),
        double_faults=_to_matrix(wrong @ wrong.T / measured.n_images),
        effective_by_weight=count_effective(shares, np.eye(len(shares))),
        effective_by_errors=count_effective(shares, similarities),
    )


def count_effective(
    shares: Float64[np.ndarray, " members"],
    similarities: Float64[np.ndarray, "members members"],
) -> float:
    """Return how many equally heavy, wholly different members would be as diverse.

    Args:
        shares: Of the members in the whole, summing to 1.
        similarities: Of each two, from 0 to 1; 1 of each with itself.

    Returns:
        From 1 to the number of members.

    Source:
        Leinster and Cobbold 2012, "Measuring diversity: the importance of species similarity",
        order 1; without similarities it is the exponential of Shannon's entropy.
    """
    ordinary = similarities @ shares
    present = shares > 0
    return float(np.exp(-(shares[present] @ np.log(ordinary[present]))))


def _leave_out_each(ensemble: Ensemble, pool: Pool, seed: int) -> list[Ensemble | None]:
    """Fit the ensemble again without each of its members; None without the only one."""
    if len(ensemble.names) == 1:
        return [None]
    n_others = len(ensemble.names) - 1
    return [
        build(
            pool.select_names([name for name in ensemble.names if name != left_out]),
            method=ensemble.method,
            max_members=n_others,
            seed=seed,
        )
        for left_out in ensemble.names
    ]


def _explain(  # noqa: PLR0913 - what one member is compared with
    ensemble: Ensemble,
    place: int,
    own: Float[np.ndarray, "images classes"],
    *,
    predictions: Float[np.ndarray, "images classes"],
    without: Float[np.ndarray, "images classes"] | None,
    labels: Int[np.ndarray, " images"],
    n_right: Int[np.ndarray, " images"],
) -> MemberExplanation:
    own_right = own.argmax(axis=1) == labels
    right = predictions.argmax(axis=1) == labels
    return MemberExplanation(
        name=ensemble.names[place],
        weight=ensemble.combination.weights[place],
        accuracy=float(own_right.mean()),
        log_loss=log_loss(own, labels),
        log_loss_added=(
            None if without is None else log_loss(without, labels) - log_loss(predictions, labels)
        ),
        accuracy_added=(
            None if without is None else accuracy(predictions, labels) - accuracy(without, labels)
        ),
        only_right=tuple(np.flatnonzero(own_right & (n_right == 1)).tolist()),
        n_corrected=int((right & ~own_right).sum()),
        n_spoiled=int((own_right & ~right).sum()),
    )


def _share_errors(
    wrong: Float64[np.ndarray, "members images"],
) -> Float64[np.ndarray, "members members"]:
    both = wrong @ wrong.T
    either = np.add.outer(wrong.sum(axis=1), wrong.sum(axis=1)) - both
    shared: np.ndarray = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    return shared


def _to_matrix(values: Float64[np.ndarray, "members members"]) -> Matrix:
    return tuple(tuple(row) for row in values.tolist())

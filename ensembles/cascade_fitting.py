"""Turning a fitted ensemble into a cascade: an order, weights for each prefix, thresholds.

What a threshold loses on the fitting images is an estimate, and the smallest threshold that
looks harmless is the luckiest one. So a standard error is added to what is counted, stage by
stage. Measured on two pools of CIFAR-10 trials (10 splits; fitted on n images, points lost and
share of the cost on fresh ones; 0.1 points allowed):

    n                                 300          1,000         5,560
    one threshold, as counted     0.11 - 0.58   0.17 - 0.30   0.09 - 0.12   at 31 - 42 %
    one threshold and error       0.02 - 0.16   0.04 - 0.07   0.05 - 0.05   at 39 - 47 %
    one per stage, as counted     0.28 - 0.78   0.18 - 0.20   0.13 - 0.13   at 23 - 37 %
    one per stage and error       0.11 - 0.30   0.06 - 0.10   0.05 - 0.09   at 29 - 40 %

It is accuracy that is kept, not log-loss: images that go early miss the opinion of the others,
which cost 0.019 of 0.500 nats. Where probabilities matter, run all members.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ensembles.builder import Ensemble, build
from ensembles.cascade import Cascade, Stage
from ensembles.combination import Combination
from ensembles.decision import MOST_PROBABLE, Decision
from ensembles.errors import EnsembleError
from ensembles.methods import Method
from ensembles.pool import Pool

MAX_LOSS = 0.001
"""Share of the fitting images that the cascade may lose against the full ensemble."""
MIN_IMAGES = 1000
"""Fitting images of which one is that share."""


def can_cascade(ensemble: Ensemble) -> bool:
    """Tell whether an ensemble has members to save, probabilities to exit on, and enough images.

    On fewer images not even one may be lost, and a threshold at which none happens to be lost
    proves nothing: fitted on 180 images, a cascade lost 2 points of accuracy on fresh ones.
    """
    return (
        len(ensemble.names) > 1
        and ensemble.combination.space != "vote"
        and ensemble.n_images >= MIN_IMAGES
    )


def fit_cascade(
    ensemble: Ensemble,
    pool: Pool,
    *,
    max_loss: float = MAX_LOSS,
    decision: Decision = MOST_PROBABLE,
) -> Cascade:
    """Turn an ensemble into a cascade that loses almost nothing.

    The members run from the cheapest to the dearest, or from the one of lowest log-loss to that
    of the highest: whichever order costs less on the fitting images. Each stage has the lowest
    threshold at and above which its part of `max_loss` is not exceeded, a standard error included;
    a stage at which no image may go is left out.

    Args:
        ensemble: An ensemble that was fitted on the pool; not a vote, whose shares are no
            probabilities.
        pool: The images that the ensemble was fitted on; its costs are those of the members.
        max_loss: Accuracy on these images that may be lost, as a share.
        decision: How the cascade's probabilities become labels; when it stops hangs on the
            probabilities alone.

    Returns:
        The cascade.

    Raises:
        EnsembleError: The ensemble is a vote, a member is not in the pool, or `max_loss` is no
            share.
    """
    if not 0 <= max_loss <= 1:
        raise EnsembleError(f"max_loss must be a share between 0 and 1, got {max_loss}.")
    if ensemble.combination.space == "vote":
        raise EnsembleError("votes are no probabilities, so a cascade cannot exit on them.")
    members = pool.select_names(ensemble.names)
    orders = {
        tuple(int(position) for position in np.argsort(keys, kind="stable"))
        for keys in (members.costs, members.log_losses())
    }
    fitted = [_fit_order(ensemble, members, order, max_loss, decision) for order in sorted(orders)]
    return min(fitted, key=lambda each: _cost_share(each, members))


def _cost_share(cascade: Cascade, members: Pool) -> float:
    return cascade.run(members.log_probabilities).cost_share(cascade, members.costs)


def _fit_order(
    ensemble: Ensemble,
    members: Pool,
    order: Sequence[int],
    max_loss: float,
    decision: Decision,
) -> Cascade:
    n_members = len(order)
    combinations = [
        _fit_prefix(ensemble, members.select(order[:n_run])) for n_run in range(1, n_members)
    ]
    combinations.append(ensemble.combination.select(order))
    ordered = members.log_probabilities[list(order)]
    combined = [each.combine(ordered[: each.n_members]) for each in combinations]
    right = np.stack([decision.decide(each) == members.labels for each in combined])
    thresholds = [*_choose_thresholds(combined, right, max_loss), 0.0]
    return Cascade(
        order=tuple(order),
        stages=tuple(
            Stage(combination=combination, threshold=threshold)
            for combination, threshold in zip(combinations, thresholds, strict=True)
            if threshold is not None
        ),
    )


def _fit_prefix(ensemble: Ensemble, prefix: Pool) -> Combination:
    """Fit the members that have run, by the ensemble's own method where that can be had."""
    method: Method = "llp" if ensemble.method in ("stack", "single") else ensemble.method
    fitted = build(prefix, method=method, max_members=prefix.n_models)
    weights = np.zeros(prefix.n_models)
    weights[list(fitted.members)] = fitted.combination.weights
    return replace(fitted.combination, weights=tuple(weights.tolist()))


def _choose_thresholds(
    combined: Sequence[Float64[np.ndarray, "images classes"]],
    right: Bool[np.ndarray, "stages images"],
    max_loss: float,
) -> list[float | None]:
    """Return the threshold of every stage but the last; None where no image may go.

    Each stage may lose an equal part of `max_loss`, and what those before it left over. What
    they gained by chance is not handed on: it would pay for losses that are real.
    """
    n_early = len(combined) - 1
    n_images = right.shape[1]
    waiting = np.ones(n_images, dtype=np.bool_)
    spent = 0
    thresholds: list[float | None] = []
    for stage in range(n_early):
        allowed = max_loss * n_images * (stage + 1) / n_early - spent
        confidence = np.exp(combined[stage].max(axis=1))
        lost = right[-1].astype(np.int64) - right[stage]
        threshold = find_lowest_harmless(confidence[waiting], lost[waiting], allowed)
        if threshold is not None:
            leaving = waiting & (confidence >= threshold)
            spent += max(0, int(lost[leaving].sum()))
            waiting &= ~leaving
        thresholds.append(threshold)
    return thresholds


def find_lowest_harmless(
    confidence: Float64[np.ndarray, " images"],
    lost: Int64[np.ndarray, " images"],
    allowed: float,
) -> float | None:
    """Return the lowest threshold at and above which too much is lost nowhere; None for none.

    Args:
        confidence: Largest probability of each image.
        lost: 1 where the ensemble is right and the stage is not, -1 the other way round.
        allowed: Images that may be lost, with a standard error: of so many differing images the
            square root.
    """
    if not len(confidence):
        return None
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    counted = np.cumsum(lost[order]) + np.sqrt(np.cumsum(np.abs(lost[order])))
    # Images of equal confidence go together.
    steps = np.flatnonzero(np.append(falling[1:] < falling[:-1], values=True))
    too_much = counted[steps] > allowed + 1e-9
    n_harmless = int(too_much.argmax()) if too_much.any() else len(steps)
    return float(falling[steps[n_harmless - 1]]) if n_harmless else None

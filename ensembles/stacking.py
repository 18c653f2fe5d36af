"""Stacking: a multinomial logistic regression on the members' log-probabilities.

Each member gets one weight per class, so a member may be trusted on cats and not on dogs; a
weight for every pair of classes was measured and needs some 10,000 images before it helps. The
weights are pulled towards those of the log-linear pool, so with few images this is that pool.
How strongly they are pulled is chosen by cross-fitting.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.optimize import minimize

from ensembles.pool import Pool, split_in_folds

PULLS = (10.0, 1.0, 0.1, 0.01)
"""Strengths tried, strongest first: the first of those that are equally good is taken."""
N_FOLDS = 5
MIN_IMAGES = 500
MIN_IMAGES_PER_CLASS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class StackedWeights:
    """A fitted stacker, and the pull that cross-fitting chose."""

    class_weights: Float64[np.ndarray, "members classes"]
    class_biases: Float64[np.ndarray, " classes"]
    pull: float


def count_images_needed(n_classes: int) -> int:
    """Return how many fitting images stacking asks for: 500, or 20 per class."""
    return max(MIN_IMAGES, MIN_IMAGES_PER_CLASS * n_classes)


def fit_stack(
    pool: Pool, center: Float64[np.ndarray, " models"], *, seed: int = 0
) -> StackedWeights:
    """Fit one weight per member and class, and one bias per class.

    Args:
        pool: Predictions of the members for the fitting images.
        center: The weights to pull towards: those of the log-linear pool.
        seed: Of the folds.

    Returns:
        The weights that lower the log-loss most, with the pull that did best on left-out folds.
    """
    folds = split_in_folds(pool.labels, n_folds=N_FOLDS, seed=seed)
    losses = np.zeros(len(PULLS))
    for fold in range(N_FOLDS):
        kept, left_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        start = _start(center, pool.n_classes)
        for position, pull in enumerate(PULLS):
            start = _fit(pool.select_images(kept), center, pull=pull, start=start)
            # A pull of 0: the loss alone.
            loss, _ = _loss_and_slopes(start, _by_class(pool, left_out), center, pull=0.0)
            losses[position] += loss * len(left_out)
    pull = PULLS[int(losses.argmin())]
    best = _fit(pool, center, pull=pull, start=_start(center, pool.n_classes))
    return StackedWeights(class_weights=best[:-1], class_biases=best[-1], pull=pull)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Data:
    logarithms: Float[np.ndarray, "members classes images"]
    labels: Int[np.ndarray, " images"]


def _by_class(pool: Pool, rows: Int[np.ndarray, " chosen"]) -> _Data:
    return _Data(
        logarithms=np.ascontiguousarray(pool.log_probabilities[:, rows].transpose(0, 2, 1)),
        labels=pool.labels[rows],
    )


def _start(
    center: Float64[np.ndarray, " members"], n_classes: int
) -> Float64[np.ndarray, "rows classes"]:
    """Return the center for every class, and below it a row of biases of 0."""
    return np.vstack([np.repeat(center[:, None], n_classes, axis=1), np.zeros(n_classes)])


def _fit(
    pool: Pool,
    center: Float64[np.ndarray, " members"],
    *,
    pull: float,
    start: Float64[np.ndarray, "rows classes"],
) -> Float64[np.ndarray, "rows classes"]:
    data = _by_class(pool, np.arange(pool.n_images))

    def objective(flat: Float64[np.ndarray, " numbers"]) -> tuple[float, np.ndarray]:
        loss, slopes = _loss_and_slopes(flat.reshape(start.shape), data, center, pull=pull)
        return loss, slopes.ravel()

    result = minimize(
        objective,
        start.ravel(),
        method="L-BFGS-B",
        jac=True,
        options={"ftol": 1e-8, "gtol": 1e-5, "maxiter": 200},
    )
    fitted: np.ndarray = result.x.reshape(start.shape)
    return fitted


def _loss_and_slopes(
    parameters: Float64[np.ndarray, "rows classes"],
    data: _Data,
    center: Float64[np.ndarray, " members"],
    *,
    pull: float,
) -> tuple[float, Float64[np.ndarray, "rows classes"]]:
    n_images = len(data.labels)
    images = np.arange(n_images)
    weights = parameters[:-1].astype(np.float32)
    scores = np.einsum("mc,mci->ci", weights, data.logarithms)
    scores += parameters[-1].astype(np.float32)[:, None]
    scores -= scores.max(axis=0)
    true_scores = scores[data.labels, images].astype(np.float64)
    residuals = np.exp(scores)
    sums = residuals.sum(axis=0)
    residuals /= sums
    residuals[data.labels, images] -= 1
    slopes = np.vstack(
        [np.einsum("mci,ci->mc", data.logarithms, residuals), residuals.sum(axis=1)]
    ).astype(np.float64)
    offsets = parameters - _start(center, parameters.shape[1])
    loss = float((np.log(sums) - true_scores).mean(dtype=np.float64))
    return (
        loss + pull / 2 * float(np.square(offsets).sum()),
        slopes / n_images + pull * offsets,
    )

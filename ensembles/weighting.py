"""Weights of a mixture, fitted exactly: at least 0, summing to 1, of lowest log-loss.

The problem is convex, so a fit carries its own proof: the loss lies above the lowest possible
by no more than the largest entry of `mixture_gains` exceeds 1.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls

from ensembles.budget import Budget, Limit
from ensembles.errors import EnsembleError
from ensembles.selection import select_greedily
from ensembles.subsets import SubsetFit, SubsetSearch, list_starts

TOLERANCE = 1e-4
"""Nats of log-loss above the optimum."""
PRIOR_IMAGES = 30.0
"""How many images' worth of opinion says that all weights are equal, in `fit_shrunk`."""
_MAX_STEPS = 200
_NEGLIGIBLE = 1e-3


def fit_simplex(
    true_class: Float[np.ndarray, "models images"],
    *,
    image_weights: Float[np.ndarray, " images"] | None = None,
) -> Float64[np.ndarray, " models"]:
    """Find the mixture weights of lowest log-loss, within 1e-4 nats.

    Args:
        true_class: Each model's probability of each image's true class; each image has at
            least one above 0.
        image_weights: How much each image counts; equal if not given.

    Returns:
        One weight per model, at least 0, summing to 1.

    Raises:
        EnsembleError: The certificate was not reached.

    Source:
        Kim et al. 2020, "A fast algorithm for maximum likelihood estimation of mixture
        proportions using sequential quadratic programming". Unlike the paper, each quadratic
        program is solved as one of non-negative least squares.
    """
    likelihoods = true_class.astype(np.float64)
    n_models, n_images = likelihoods.shape
    importance = np.ones(n_images) if image_weights is None else image_weights
    importance = importance / importance.sum()
    weights = np.full(n_models, 1 / n_models)
    for _ in range(_MAX_STEPS):
        gains = mixture_gains(likelihoods, weights, importance)
        if gains.max() - 1 <= TOLERANCE:
            return _drop_negligible(likelihoods, weights, importance)
        weights = _newton_step(likelihoods, weights, importance, gains)
    raise EnsembleError(f"no weights within {TOLERANCE} nats of the best were found.")


def fit_shrunk(
    true_class: Float[np.ndarray, "models images"],
) -> Float64[np.ndarray, " models"]:
    """Fit mixture weights with a pull towards equal ones, as strong as 30 images.

    The pull is a Dirichlet prior, written as imagined images that one model alone explains.

    Args:
        true_class: Each model's probability of each image's true class.

    Returns:
        One weight per model, above 0, summing to 1.
    """
    n_models, n_images = true_class.shape
    imagined = np.hstack([true_class, np.eye(n_models, dtype=true_class.dtype)])
    importance = np.concatenate(
        [np.ones(n_images), np.full(n_models, PRIOR_IMAGES / n_models)],
    )
    return fit_simplex(imagined, image_weights=importance)


def select_simplex(
    true_class: Float[np.ndarray, "models images"],
    *,
    max_members: int,
    limits: Sequence[Limit] = (),
) -> Float64[np.ndarray, " models"]:
    """Find mixture weights of low log-loss for no more than `max_members` models.

    Args:
        true_class: Each model's probability of each image's true class.
        max_members: Most weights above 0.
        limits: What the members together may cost.

    Returns:
        One weight per model, at least 0, summing to 1: of all models the best, if few enough
        of those get a weight; else of the members chosen one by one.
    """
    weights = fit_simplex(true_class)
    budget = Budget(max_members=max_members, limits=tuple(limits))
    if budget.fits(np.flatnonzero(weights).tolist()):
        return weights
    n_models, n_images = true_class.shape
    importance = np.full(n_images, 1 / n_images)

    def fit(members: list[int]) -> SubsetFit:
        part = fit_simplex(true_class[members])
        loss = -float(np.log(part @ true_class[members]).mean())
        return SubsetFit(members=members, weights=part, loss=loss)

    def slopes(fitted: SubsetFit) -> Float64[np.ndarray, " models"]:
        full = fitted.scattered(n_models)
        return 1 - mixture_gains(true_class, full, importance)

    ranking = np.argsort(-np.log(true_class).sum(axis=1, dtype=np.float64), kind="stable")
    starts = [[start] for start in list_starts(ranking, budget)]
    greedy = select_greedily(true_class, np.ones(n_models), max_members=max_members, limits=limits)
    firsts = [fit(members) for members in (*starts, np.flatnonzero(greedy).tolist())]
    best = SubsetSearch(fit=fit, slopes=slopes, budget=budget).forward(firsts)
    return best.scattered(n_models)


def mixture_gains(
    true_class: Float[np.ndarray, "models images"],
    weights: Float64[np.ndarray, " models"],
    importance: Float64[np.ndarray, " images"],
) -> Float64[np.ndarray, " models"]:
    """Return how fast the mixture's mean log-likelihood grows with each weight.

    At the optimum no gain exceeds 1, and those of the members are 1. Elsewhere the loss is
    above the lowest by at most the greatest gain minus 1.
    """
    gains: np.ndarray = true_class @ (importance / (weights @ true_class))
    return gains


def _newton_step(
    likelihoods: Float64[np.ndarray, "models images"],
    weights: Float64[np.ndarray, " models"],
    importance: Float64[np.ndarray, " images"],
    gains: Float64[np.ndarray, " models"],
) -> Float64[np.ndarray, " models"]:
    """Minimize the local quadratic over weights of at least 0, then search along the line.

    The sum of the weights is a term of the loss instead of a constraint; the optimum is the
    same, and the quadratic's linear part is 1 - 2 * gains.
    """
    active = np.flatnonzero((weights > 0) | (gains > 1))
    part, start = likelihoods[active], weights[active]
    mixture = start @ part
    hessian = (part * (importance / mixture**2)) @ part.T
    hessian[np.diag_indices_from(hessian)] += 1e-9 * np.trace(hessian) / len(active)
    root = cholesky(hessian)
    target = solve_triangular(root, 2 * gains[active] - 1, trans="T")
    goal, _ = nnls(root, target, maxiter=30 * len(active))
    direction = goal - start
    slope = float((1 - gains[active]) @ direction)
    before = float(start.sum() - importance @ np.log(mixture))
    step = 1.0
    while step > 1e-10:
        moved = np.maximum(start + step * direction, 0)
        mixture = moved @ part
        if mixture.min() > 0:
            after = float(moved.sum() - importance @ np.log(mixture))
            if after <= before + 1e-4 * step * slope:
                break
        step /= 2
    result = np.zeros_like(weights)
    result[active] = np.maximum(start + step * direction, 0)
    result /= result.sum()
    return result


def _drop_negligible(
    likelihoods: Float64[np.ndarray, "models images"],
    weights: Float64[np.ndarray, " models"],
    importance: Float64[np.ndarray, " images"],
) -> Float64[np.ndarray, " models"]:
    """Set tiny weights to 0, if the certificate survives: each member costs a forward pass."""
    kept = np.where(weights < _NEGLIGIBLE, 0, weights)
    kept /= kept.sum()
    if (kept @ likelihoods).min() <= 0:
        return weights
    survives = mixture_gains(likelihoods, kept, importance).max() - 1 <= TOLERANCE
    return kept if survives else weights

"""The selection loops of two other tools, re-stated for comparison.

Both evaluate every candidate in every round on all predictions, through scikit-learn's metric.
Left out: logging, checks of inputs, sample weights, and subsampling above a million rows.
"""

import numpy as np
from jaxtyping import Float, Float64, Int
from sklearn.metrics import log_loss

N_DRAWS = 25


def autogluon_selection(
    probabilities: Float[np.ndarray, "models images classes"],
    labels: Int[np.ndarray, " images"],
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Float64[np.ndarray, " models"]:
    """Return the weights that AutoGluon's `EnsembleSelection` gives, log-loss its metric.

    Losses are rounded to six decimals; of tied candidates one already used is preferred, then
    chance decides; the best prefix is kept.
    """
    generator = np.random.default_rng(seed)
    classes = np.arange(probabilities.shape[2])
    total = np.zeros_like(probabilities[0])
    order: list[int] = []
    losses: list[float] = []
    for n_chosen in range(n_draws):
        scores = np.empty(len(probabilities))
        for index, candidate in enumerate(probabilities):
            mean = (total + candidate) / (n_chosen + 1)
            scores[index] = round(log_loss(labels, mean, labels=classes), 6)
        tied = np.flatnonzero(scores == scores.min())
        used = [index for index in tied if index in order]
        chosen = int(generator.choice(used or tied))
        order.append(chosen)
        losses.append(float(scores[chosen]))
        total = total + probabilities[chosen]
    best = int(np.argmin(losses)) + 1
    return np.bincount(order[:best], minlength=len(probabilities)) / best


def autosklearn_selection(
    probabilities: Float[np.ndarray, "models images classes"],
    labels: Int[np.ndarray, " images"],
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Float64[np.ndarray, " models"]:
    """Return the weights that auto-sklearn's "fast" loop gives, log-loss its metric.

    Chance decides between tied candidates; the last prefix is kept, not the best.
    """
    generator = np.random.default_rng(seed)
    classes = np.arange(probabilities.shape[2])
    total = np.zeros_like(probabilities[0])
    mean = np.empty_like(total)
    order: list[int] = []
    for n_chosen in range(n_draws):
        scores = np.empty(len(probabilities))
        for index, candidate in enumerate(probabilities):
            np.add(total, candidate, out=mean)
            np.multiply(mean, 1 / (n_chosen + 1), out=mean)
            scores[index] = log_loss(labels, mean, labels=classes)
        chosen = int(generator.choice(np.flatnonzero(scores == np.nanmin(scores))))
        order.append(chosen)
        np.add(total, probabilities[chosen], out=total)
    return np.bincount(order, minlength=len(probabilities)) / n_draws

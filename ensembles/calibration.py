"""One number that repairs how sure a distribution is, fitted after the members are pooled.

Members that are each calibrated do not pool to something calibrated, so the temperature comes
last. Its prior matters: with 4 to 14 errors among the fitting images the maximum-likelihood
temperature raised the log-loss of fresh images from 0.132 to 0.175 nats, this one did not.
"""

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar

from ensembles.metrics import log_loss
from ensembles.pool import normalize_log_probabilities

PRIOR_SIGMA = 0.2
"""Standard deviation of the log of the temperature, before any image is seen."""
_LOG_RANGE = (-3.0, 3.0)


def fit_temperature(
    log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    *,
    prior_sigma: float = PRIOR_SIGMA,
) -> float:
    """Find the most probable temperature, given the images and a prior around 1.

    Args:
        log_probabilities: The pooled predictions.
        labels: The true classes.
        prior_sigma: Standard deviation of the normal prior on the temperature's logarithm.

    Returns:
        The number to divide logarithms by, from 0.05 to 20.
    """
    n_images = len(labels)
    true = log_probabilities[np.arange(n_images), labels].mean(dtype=np.float64)
    shift = log_probabilities.max(axis=1, keepdims=True)
    # Classes by images: sums over the first axis run along memory, 3 times as fast.
    centered = np.ascontiguousarray((log_probabilities - shift).T)
    mean_shift = float(shift.mean(dtype=np.float64))

    def loss(log_temperature: float) -> float:
        sharpness = math.exp(-log_temperature)
        log_sums = np.log(np.exp(centered * sharpness).sum(axis=0))
        nll = float(log_sums.mean(dtype=np.float64)) + sharpness * (mean_shift - float(true))
        return nll + log_temperature**2 / (2 * prior_sigma**2 * n_images)

    best = minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-4})
    return math.exp(float(best.x))


def log_loss_after_temperature(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> float:
    """Return the log-loss of one model after a temperature that is fitted on the same images.

    So single models are compared: label smoothing alone costs 0.2 nats that one number gives back.
    """
    temperature = fit_temperature(log_probabilities, labels)
    return log_loss(normalize_log_probabilities(log_probabilities / temperature), labels)

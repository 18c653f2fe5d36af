"""How a trial is judged: the scores of predictions on the stop role."""

import numpy as np
from jaxtyping import Float, Int64

from ensembles.calibration import fit_temperature
from ensembles.metrics import METRICS, MetricName
from ensembles.pool import normalize_log_probabilities

SCORES: tuple[MetricName, ...] = ("log_loss", "accuracy", "balanced_accuracy", "macro_f1")
# A trial is judged as it would be exported: with a temperature. Label smoothing alone would
# otherwise cost 0.2 nats that one number gives back, and the search would avoid the best recipes.
PRIOR_SIGMA = 0.5


def score(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int64[np.ndarray, " images"]
) -> dict[str, float]:
    """Return every score that a study may optimize, after one fitted temperature.

    Args:
        log_probabilities: Predictions of one network.
        labels: The true classes.

    Returns:
        Scores by name, and the `temperature`. The log-loss is in nats.
    """
    temperature = fit_temperature(log_probabilities, labels, prior_sigma=PRIOR_SIGMA)
    calibrated = normalize_log_probabilities(log_probabilities / temperature)
    scores = {str(name): METRICS[name].compute(calibrated, labels) for name in SCORES}
    return {**scores, "temperature": temperature}


def is_better(metric: MetricName, value: float, than: float) -> bool:
    """Tell whether one value of a metric is better than another."""
    return value > than if METRICS[metric].higher_is_better else value < than

"""How a trial is judged: the scores of predictions on the stop role."""

import numpy as np
from jaxtyping import Float, Int64

from ensembles.calibration import fit_temperature
from ensembles.metrics import METRICS, MetricName
from ensembles.overtuning import Overtuning, measure_overtuning
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


def measure_flattery(
    stop: tuple[Float[np.ndarray, "stop_images classes"], Int64[np.ndarray, " stop_images"]],
    ens: tuple[Float[np.ndarray, "ens_images classes"], Int64[np.ndarray, " ens_images"]],
) -> Overtuning:
    """Measure how much a trial's own score promised too much.

    The score has a temperature that was fitted on the stop role; so the same temperature goes
    with the trial to the ens role.

    Args:
        stop: What the network predicts for the stop role, and its labels.
        ens: The same for the ens role.

    Raises:
        EnsembleError: One of the roles has fewer than 2 images.
    """
    temperature = fit_temperature(*stop, prior_sigma=PRIOR_SIGMA)
    judged = [
        (normalize_log_probabilities(predicted / temperature), labels)
        for predicted, labels in (stop, ens)
    ]
    return measure_overtuning(stop=judged[0], ens=judged[1])


def is_better(metric: MetricName, value: float, than: float) -> bool:
    """Tell whether one value of a metric is better than another."""
    return value > than if METRICS[metric].higher_is_better else value < than

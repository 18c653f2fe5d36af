"""A point of an ensemble's curve, for tests of what is told about it."""

from ensembles.comparison import Interval
from ensembles.overtuning import Overtuning
from search.curve_points import CurvePoint, Score

POINT = CurvePoint(
    n_finished=10,
    seconds=3.5,
    n_images=500,
    best_trial=7,
    best=Score(log_loss=0.655, accuracy=0.761),
    method="llp",
    ensemble=Score(log_loss=0.612, accuracy=0.781),
    n_members=5,
    members=(7, 3, 1, 2, 9),
    overtuning=Overtuning(
        n_stop=400,
        n_ens=500,
        stop_log_loss=0.65,
        ens_log_loss=0.6624,
        log_loss_optimism=0.0124,
        log_loss_interval=Interval(low=-0.01, high=0.035),
        stop_accuracy=0.765,
        ens_accuracy=0.761,
        accuracy_optimism=0.004,
        accuracy_interval=Interval(low=-0.01, high=0.02),
        verdict="not distinguishable",
    ),
)

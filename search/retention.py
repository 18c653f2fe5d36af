"""Which trials keep their weights: the best ones, and some of each family."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from search.paths import StudyPaths
from search.storage import FINISHED

KEPT_OF_EACH_FAMILY = 3


def kept_trials(trials: Sequence[FrozenTrial], keep: int) -> list[FrozenTrial]:
    """Return the finished trials whose weights are kept, best first.

    Args:
        trials: All trials of a study.
        keep: How many of the lowest log-loss on the stop role; the best three of each family of
            networks stay besides.

    Returns:
        Complete and pruned trials that left predictions.
    """
    ranked = sorted(
        (trial for trial in trials if trial.state in FINISHED and "log_loss" in trial.user_attrs),
        key=lambda trial: (trial.user_attrs["log_loss"], trial.number),
    )
    kept = ranked[:keep]
    of_family: dict[str, int] = {}
    for trial in ranked:
        family = trial.user_attrs["recipe"]["architecture"]["family"]
        of_family[family] = of_family.get(family, 0) + 1
        if of_family[family] <= KEPT_OF_EACH_FAMILY and trial not in kept:
            kept.append(trial)
    return kept


def free_weights(paths: StudyPaths, trials: Sequence[FrozenTrial], *, keep: int) -> None:
    """Delete the weights of finished trials that are not among those kept.

    Only a finished trial loses its weights, and a kept set can only lose to better trials; so no
    weights go that a later look would have kept.
    """
    kept = {trial.number for trial in kept_trials(trials, keep)}
    for trial in trials:
        if trial.state in FINISHED and trial.number not in kept:
            paths.trial(trial.number).weights.unlink(missing_ok=True)

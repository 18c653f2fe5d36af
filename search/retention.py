"""Which trials keep their weights: the best ones, and some of each family."""

import shutil
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from ensembles.metrics import METRICS, MetricName
from search.candidate_names import trial_of
from search.paths import StudyPaths
from search.selections import selected_names
from search.soup_records import soup_files
from search.trials import FINISHED
from search.trials import ranked as ranked_trials

KEPT_OF_EACH_FAMILY = 3


def kept_trials(
    trials: Sequence[FrozenTrial], keep: int, metric: MetricName = "log_loss"
) -> list[FrozenTrial]:
    """Return the finished trials whose weights are kept, best first.

    Args:
        trials: All trials of a study.
        keep: How many of the lowest log-loss on the stop role; the best three of each family of
            networks and the leader stay besides.
        metric: What the study optimizes; it decides who leads.

    Returns:
        Complete and pruned trials that left predictions.
    """
    ranked = sorted(
        (trial for trial in trials if trial.state in FINISHED and "log_loss" in trial.user_attrs),
        key=lambda trial: (trial.user_attrs["log_loss"], trial.number),
    )
    kept = ranked[:keep]
    leaders = ranked_trials(trials, rises=METRICS[metric].higher_is_better)
    kept += [trial for trial in leaders[:1] if trial in ranked and trial not in kept]
    of_family: dict[str, int] = {}
    for trial in ranked:
        family = trial.user_attrs["recipe"]["architecture"]["family"]
        of_family[family] = of_family.get(family, 0) + 1
        if of_family[family] <= KEPT_OF_EACH_FAMILY and trial not in kept:
            kept.append(trial)
    return kept


def free_weights(
    paths: StudyPaths, trials: Sequence[FrozenTrial], *, keep: int, metric: MetricName
) -> None:
    """Delete the networks of finished trials that are neither kept nor members of the ensemble.

    Only a finished trial loses its weights, and a kept set can only lose to better trials; so no
    weights go that a later look would have kept. What was reported stays exportable.
    """
    kept = {trial.number for trial in kept_trials(trials, keep, metric)}
    kept |= {number for name in selected_names(paths) if (number := trial_of(name)) is not None}
    for trial in trials:
        if trial.state in FINISHED and trial.number not in kept:
            files = paths.trial(trial.number)
            files.weights.unlink(missing_ok=True)
            for folder in (files.snapshots, soup_files(paths, trial.number).folder):
                if folder.is_dir():
                    shutil.rmtree(folder)

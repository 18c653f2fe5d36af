"""The networks that were trained after the search: other seeds of its best trial, and folds.

* Seeds are the rival that papers forget: the same recipe trained several times and averaged. Were
  they candidates of the other methods too, they would be no rival of the trials any more.
* A member of folds is a trial whose recipe was trained once without each fold: it is the mean of
  these networks. Each image of train, stop and ens is predicted by the one that did not see it, so
  a builder has them all to fit on.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ensembles.pool import Pool
from search.candidate_names import fold_name, seed_name
from search.candidates import Candidate, find_candidates, trained_again
from search.data.folds import OUTSIDE, read_folds
from search.data.store import open_store
from search.paths import SEEDS, folds_kind
from search.predictions import gather_predictions, has_predictions
from search.study import Study

MAX_SEEDS = 100
"""More than a study may be told."""


def list_seeds(study: Study) -> list[Candidate]:
    """Return the networks of the best trial's recipe: its own, and those trained again.

    They are no candidates of the other methods: what they are for is to be their rival.

    Returns:
        By seed, the trial itself first, as many as the study was told; none where the recipe was
        not trained again.
    """
    if not (leaders := study.leaders()):
        return []
    number = leaders[0].number
    wanted = study.record.config.seeds or MAX_SEEDS
    names = [seed_name(number, seed) for seed in range(1, wanted)]
    there = {
        each.name: each
        for each in trained_again(study, SEEDS)
        if each.files.weights.is_file() and has_predictions(each.files)
    }
    found = [there[name] for name in names if name in there]
    return [*find_candidates(study, [str(number)]), *found] if found else []


def list_fold_members(study: Study, n_folds: int) -> dict[str, tuple[Candidate, ...]]:
    """Return the trials that were trained on all folds, by name, each with its networks by fold.

    Returns:
        By the number of the trial; empty where none was trained on all of them.
    """
    there = {
        each.name: each
        for each in trained_again(study, folds_kind(n_folds))
        if each.files.weights.is_file() and has_predictions(each.files, ("fold", "test"))
    }
    members = {}
    for trial in sorted({each.trial for each in there.values()}):
        names = [fold_name(trial, fold, n_folds) for fold in range(1, n_folds + 1)]
        if all(name in there for name in names):
            members[str(trial)] = tuple(there[name] for name in names)
    return members


def out_of_fold_pool(
    study: Study, members: Mapping[str, Sequence[Candidate]], n_folds: int
) -> Pool:
    """Return what networks predict for the images of the fold that they did not learn from.

    Args:
        study: A study whose members were trained on folds.
        members: By name, each with its networks by fold.
        n_folds: How many there are.

    Returns:
        One model for each member, for all images of train, stop and ens, in the order of their
        rows; it costs as much as its networks together.

    Raises:
        SearchError: Predictions are gone.
    """
    folds = read_folds(study.paths.nested(folds_kind(n_folds)).folds)
    rows = np.flatnonzero(folds != OUTSIDE)
    shape = (len(members), len(rows), len(study.record.class_names))
    predicted = np.empty(shape, dtype=np.float32)
    for place, networks in enumerate(members.values()):
        for fold, network in enumerate(networks, start=1):
            (unseen,) = gather_predictions([network.files], "fold")
            predicted[place, folds[rows] == fold] = unseen
    return Pool.from_arrays(
        log_probabilities=predicted,
        labels=np.asarray(open_store(study.record.store).labels[rows]),
        names=tuple(members),
        costs=[sum(each.milliseconds for each in networks) for networks in members.values()],
        class_names=study.record.class_names,
    )

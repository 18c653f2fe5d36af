"""What is trained again after a search: the best recipe with other seeds, or trials on folds.

* Seeds: the recipe of the search's best trial, for as long as the trial, with other seeds; each is
  stopped on the stop role as the trial was.
* Folds: the trials of lowest log-loss on the stop role, twice as many as an ensemble may have
  members, out of those whose weights are kept. There is no role to stop on, so each network trains
  as long as its trial was planned to, and its last round is kept.
"""

from collections.abc import Iterator, Sequence

from optuna.trial import FrozenTrial

from search.assignments import Assignment, Fold, Order
from search.candidate_names import fold_name, seed_name
from search.data.folds import assign_folds, write_folds
from search.data.roles import read_roles
from search.data.store import open_store
from search.errors import NothingToDoError
from search.extra_trainings import (
    Effort,
    Trained,
    expected_seconds,
    planned_epochs,
    train_again,
)
from search.paths import SEEDS, folds_kind
from search.preparation import with_images
from search.retention import kept_trials
from search.schedule import FOLDED_PER_MEMBER
from search.seeding import derive_seed
from search.study import Study


def train_what_is_asked(study: Study, effort: Effort) -> list[Trained]:
    """Train the folds or seeds that a study's settings ask for, as far as they are not there.

    Where they ask for both, it is folds: beside members of folds, seeds would prove nothing. Of
    trials whose files lie on another host, none is trained again before they are copied.

    Raises:
        DataError: There are too few images for so many folds.
        SearchError: Another process is at it, or the trainings fail again and again.
    """
    config = study.record.config
    if config.folds and _best_here(study):
        return [train_folds(study, config.folds, effort)]
    if config.seeds and _here(study, study.leaders()[:1]):
        return [train_seeds(study, config.seeds, effort)]
    return []


def train_seeds(study: Study, n_seeds: int, effort: Effort) -> Trained:
    """Train the recipe of the best trial until there are so many networks of it.

    Args:
        study: A study with a complete trial.
        n_seeds: The trial itself is one of them.
        effort: Time, and who is told.

    Raises:
        NothingToDoError: No trial is complete.
        SearchError: Another process is at it, or the trainings fail again and again.
    """
    if not (leaders := study.leaders()):
        raise NothingToDoError(f"study {study.name!r} has no complete trial to train again.")
    orders = _seed_orders(study, leaders[0], n_seeds)
    return train_again(study, orders, kind=SEEDS, effort=effort)


def train_folds(study: Study, n_folds: int, effort: Effort) -> Trained:
    """Train the best trials once without each fold of the images that are not sealed.

    Args:
        study: A study with finished trials.
        n_folds: How many folds there are.
        effort: Time, and who is told; where it ends early, the best trials are done first.

    Raises:
        DataError: There are too few images for so many folds.
        SearchError: Another process is at it, or the trainings fail again and again.
    """
    config = study.record.config
    kind = folds_kind(n_folds)
    path = study.paths.nested(kind).folds
    if not path.is_file():
        store = open_store(with_images(study, effort.on_decode).record.store)
        roles = read_roles(study.paths.roles)
        write_folds(path, assign_folds(store, roles, n_folds=n_folds, seed=config.seed))
    best = _best_here(study)[: FOLDED_PER_MEMBER * config.max_members]
    orders = [order for trial in best for order in _fold_orders(study, trial, n_folds)]
    return train_again(study, orders, kind=kind, effort=effort)


def _best_here(study: Study) -> list[FrozenTrial]:
    config = study.record.config
    return _here(study, kept_trials(study.trials(), config.keep, config.metric))


def _here(study: Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return those whose scores are on this host: they tell how long a trial trained."""
    return [trial for trial in trials if study.paths.trial(trial.number).history.is_file()]


def _seed_orders(study: Study, trial: FrozenTrial, n_seeds: int) -> list[Order]:
    return [
        Order(
            name=seed_name(trial.number, seed),
            parameters=trial.params,
            assignment=Assignment(
                seed=derive_seed(study.record.config.seed, "seed", trial.number, seed),
                epochs=planned_epochs(study, trial),
            ),
            expected_seconds=expected_seconds(study, trial),
        )
        for seed in range(1, n_seeds)
    ]


def _fold_orders(study: Study, trial: FrozenTrial, n_folds: int) -> Iterator[Order]:
    sizes = study.record.role_sizes
    n_unsealed = sizes["train"] + sizes["stop"] + sizes["ens"]
    longer = n_unsealed * (n_folds - 1) / n_folds / sizes["train"]
    for fold in range(1, n_folds + 1):
        yield Order(
            name=fold_name(trial.number, fold, n_folds),
            parameters=trial.params,
            assignment=Assignment(
                seed=derive_seed(study.record.config.seed, "fold", trial.number, fold, n_folds),
                epochs=planned_epochs(study, trial),
                fold=Fold(number=fold, of=n_folds),
            ),
            expected_seconds=longer * expected_seconds(study, trial),
        )

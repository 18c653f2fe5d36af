"""The networks that an ensemble of a study may be built from: best checkpoints, snapshots, soups.

Whatever is trained or made of weights becomes a candidate by a function in `_SOURCES`, a row in
`search.candidate_names`, and files of the usual names.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeAlias

import numpy as np
from optuna.trial import FrozenTrial

from ensembles.pool import Pool
from search.absences import describe_absent
from search.assignments import by_order
from search.candidate_names import candidate_title, trial_of
from search.data.roles import Role, read_roles
from search.data.store import open_store
from search.errors import NothingToDoError, SearchError
from search.paths import TrialPaths
from search.predictions import gather_predictions, has_predictions
from search.retention import kept_trials
from search.soup_records import soup_files, soup_name
from search.study import Study
from spaces.recipe import Recipe, recipe_from_json


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network whose weights and predictions are on the disk."""

    name: str
    """`42` is the best checkpoint of trial 42, `42@8` its weights after round 8, `42@raw` those of
    its best round without averaging, `soup-42` an average of them."""
    trial: int
    """Whose recipe it has."""
    recipe: Recipe
    files: TrialPaths
    """`files.weights`, and `files.predictions(role)` for the roles stop, ens and test."""
    milliseconds: float
    """For one image, as its trial measured it."""


Source: TypeAlias = Callable[[Study, Sequence[FrozenTrial]], Iterator[Candidate]]
"""Returns the candidates with the recipes of some finished trials; their files may be gone."""


def list_candidates(study: Study) -> list[Candidate]:
    """Return the networks that have the recipe of a trial that is kept, and are whole.

    Returns:
        By the number of the trial; its best checkpoint first, then its snapshots by round; after
        all of them the soups.

    Raises:
        NothingToDoError: No trial has finished with predictions and weights.
    """
    config = study.record.config
    kept = kept_trials(study.trials(), config.keep, config.metric)
    found = [each for each in _gather(study, kept) if _is_usable(each.files)]
    if not found:
        absent = describe_absent(study)
        raise NothingToDoError(
            f"study {study.name!r} has no finished trial to build an ensemble from"
            f"{': ' if absent else ''}{absent}."
        )
    return found


def list_trainings(study: Study) -> list[list[Candidate]]:
    """Return the networks of each training of a kept trial, as `list_candidates` orders them."""
    config = study.record.config
    kept = kept_trials(study.trials(), config.keep, config.metric)
    ordered = sorted(kept, key=lambda trial: trial.number)
    found = [each for each in _trainings(study, ordered) if _is_usable(each.files)]
    return [list(networks) for _, networks in groupby(found, key=lambda each: each.trial)]


def find_candidates(study: Study, names: Sequence[str]) -> list[Candidate]:
    """Return the candidates of these names, in the order asked for.

    They need not be kept for new ensembles any more; who reads a file that is gone says so.

    Raises:
        SearchError: There is none of a name.
    """
    trials = study.trials()
    named = {each.name: each for each in _gather(study, kept_trials(trials, len(trials)))}
    kinds = (path.parent.name for path in study.paths.folder.glob("*/study.db"))
    named |= {each.name: each for kind in kinds for each in trained_again(study, kind)}
    if missing := [name for name in names if name not in named]:
        raise SearchError(
            f"study {study.name!r} has no {candidate_title(missing[0])} any more; "
            "`python -m search ensemble` builds an ensemble of what there is."
        )
    return [named[name] for name in names]


def trained_again(study: Study, kind: str) -> Iterator[Candidate]:
    """Iterate over the networks with the recipe of a trial that were ordered after the search.

    They cost what their trial does: measured again, it would be another number.
    """
    if (nested := study.nested(kind)) is None:
        return
    attributes = {trial.number: trial.user_attrs for trial in study.trials()}
    for name, trial in by_order(nested.trials()).items():
        number = trial_of(name)
        if number is None:
            continue
        yield Candidate(
            name=name,
            trial=number,
            recipe=recipe_from_json(trial.user_attrs["recipe"]),
            files=nested.paths.trial(trial.number),
            milliseconds=float(attributes[number]["milliseconds"]),
        )


def candidate_pool(study: Study, candidates: Sequence[Candidate], role: Role) -> Pool:
    """Return what some candidates predict for the images of a role, in the order asked for.

    Raises:
        SearchError: Predictions of a candidate are gone.
    """
    rows = read_roles(study.paths.roles).rows(role)
    return Pool.from_arrays(
        log_probabilities=gather_predictions([each.files for each in candidates], role),
        labels=np.asarray(open_store(study.record.store).labels[rows]),
        names=[each.name for each in candidates],
        costs=np.array([each.milliseconds for each in candidates]),
        class_names=study.record.class_names,
    )


def _gather(study: Study, trials: Sequence[FrozenTrial]) -> Iterator[Candidate]:
    ordered = sorted(trials, key=lambda trial: trial.number)
    for source in _SOURCES:
        yield from source(study, ordered)


def _trainings(study: Study, trials: Sequence[FrozenTrial]) -> Iterator[Candidate]:
    """Iterate over the best checkpoint of each trial, and its snapshots."""
    for trial in trials:
        best = _best_of(study, trial)
        yield best
        for name in _snapshot_names(best.files):
            yield replace(best, name=f"{best.name}@{name}", files=best.files.snapshot(name))


def _soups(study: Study, trials: Sequence[FrozenTrial]) -> Iterator[Candidate]:
    """Iterate over the averages of the weights of each trial."""
    for trial in trials:
        files = soup_files(study.paths, trial.number)
        if files.folder.is_dir():
            yield replace(_best_of(study, trial), name=soup_name(trial.number), files=files)


_SOURCES: tuple[Source, ...] = (_trainings, _soups)


def _best_of(study: Study, trial: FrozenTrial) -> Candidate:
    return Candidate(
        name=str(trial.number),
        trial=trial.number,
        recipe=recipe_from_json(trial.user_attrs["recipe"]),
        files=study.paths.trial(trial.number),
        milliseconds=float(trial.user_attrs["milliseconds"]),
    )


def _snapshot_names(files: TrialPaths) -> list[str]:
    """Return the names of a trial's snapshots by round; that without averaging comes last."""
    folder = files.snapshots
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    return sorted(names, key=lambda name: (not name.isdecimal(), name.zfill(8)))


def _is_usable(files: TrialPaths) -> bool:
    return has_predictions(files) and files.weights.is_file()

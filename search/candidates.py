"""The networks that an ensemble of a study may be built from: best checkpoints and snapshots."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ensembles.pool import Pool
from search.data.roles import Role, read_roles
from search.data.store import open_store
from search.errors import NothingToDoError
from search.paths import TrialPaths
from search.predictions import gather_predictions, has_predictions
from search.retention import kept_trials
from search.study import Study
from spaces.recipe import Recipe, recipe_from_json


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network whose weights and predictions are on the disk."""

    name: str
    """`42` is the best checkpoint of trial 42, `42@8` its weights after round 8, `42@raw` those of
    its best round without averaging."""
    trial: int
    """Whose recipe it has."""
    recipe: Recipe
    files: TrialPaths
    """`files.weights`, and `files.predictions(role)` for the roles stop, ens and test."""
    milliseconds: float
    """For one image, as its trial measured it."""


def list_candidates(study: Study) -> list[Candidate]:
    """Return the trials whose weights are kept, and their snapshots.

    Returns:
        By the number of the trial; its best checkpoint first, then its snapshots by round.

    Raises:
        NothingToDoError: No trial has finished with predictions and weights.
    """
    config = study.record.config
    kept = kept_trials(study.trials(), config.keep, config.metric)
    found = []
    for trial in sorted(kept, key=lambda trial: trial.number):
        files = study.paths.trial(trial.number)
        if not _is_usable(files):
            continue
        recipe = recipe_from_json(trial.user_attrs["recipe"])
        for name, each in [("", files), *_snapshots(files)]:
            found.append(
                Candidate(
                    name=f"{trial.number}{name}",
                    trial=trial.number,
                    recipe=recipe,
                    files=each,
                    milliseconds=float(trial.user_attrs["milliseconds"]),
                )
            )
    if not found:
        raise NothingToDoError(
            f"study {study.name!r} has no finished trial to build an ensemble from."
        )
    return found


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


def _snapshots(files: TrialPaths) -> Iterator[tuple[str, TrialPaths]]:
    """Iterate over the whole snapshots of a trial, by round; that without averaging comes last."""
    if not files.snapshots.is_dir():
        return
    names = [folder.name for folder in files.snapshots.iterdir()]
    for name in sorted(names, key=lambda name: (not name.isdecimal(), name.zfill(8))):
        if _is_usable(files.snapshot(name)):
            yield f"@{name}", files.snapshot(name)


def _is_usable(files: TrialPaths) -> bool:
    return has_predictions(files) and files.weights.is_file()

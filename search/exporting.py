"""From the ensemble of a study to a bundle."""

import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from ensembles.builder import Ensemble
from ensembles.cascade import Cascade
from ensembles.cascade_fitting import MIN_IMAGES, can_cascade, fit_cascade
from ensembles.conformal import fit_conformal, fit_rejection
from ensembles.cross_fitting import cross_fitted_predictions
from ensembles.decision import MOST_PROBABLE, Decision
from ensembles.errors import EnsembleError
from ensembles.export import BundleContents, summarize_report, write_bundle
from ensembles.manifest import Manifest, Provenance
from ensembles.members import Member
from ensembles.methods import Method
from ensembles.pool import Pool
from ensembles.report import Report
from search.basis import fitted_pool
from search.candidates import find_candidates
from search.costs import read_costs
from search.ensembling import read_ensemble
from search.predictions import read_weights
from search.seeding import derive_seed
from search.selections import Selection
from search.study import Study

ALPHA = 0.1
"""Share of pictures whose set of possible classes may miss the true one."""


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What a bundle shall promise of its predictions; all is fitted on the ens role."""

    alpha: float | None = None
    """Share of pictures whose set may miss the true class; None: 0.1, where there are enough
    images for it."""
    target_accuracy: float | None = None
    """Of the pictures that are answered; None: all are."""
    cascade: bool = False
    """Whether the bundle runs as a cascade unless it is told otherwise."""


def export_study(
    study: Study,
    folder: Path,
    *,
    method: Method | None = None,
    promises: Promises | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write the best of a study as one folder.

    Args:
        study: A study with an ensemble.
        folder: Where to write.
        method: What to export; default: the chosen ensemble where the test role established that
            it is better, else the best single model.
        promises: What the bundle shall promise; default: sets for `ALPHA`, if it can.
        overwrite: Replace an older bundle.

    Returns:
        What the bundle says of itself.

    Raises:
        NothingToDoError: The study has no ensemble yet.
        EnsembleError: The method was not built, or a promise cannot be kept.
        SearchError: The weights of a member are gone.
        BundleError: The folder cannot be written.
    """
    promises = promises or Promises()
    result = read_ensemble(study.paths)
    chosen = method or result.worth_exporting
    selection = result.selection(chosen)
    candidates = find_candidates(study, selection.names)
    costs = read_costs(study, candidates)
    pool = fitted_pool(study, candidates, result.n_folds)
    decision = _decision(selection, result.report)
    contents = BundleContents(
        members=[
            Member(
                name=each.name,
                architecture=each.recipe.architecture,
                weights=read_weights(each.files),
                cost=costs[each.name],
            )
            for each in candidates
        ],
        combination=selection.combination,
        classes=study.record.class_names,
        image_input=study.record.image_input,
        provenance=provenance_of(study),
        report=summarize_report(result.report, exported=chosen),
        decision=decision,
        cascade=None if result.n_folds else _cascade(selection, pool, decision),
        prefers_cascade=promises.cascade,
    )
    if contents.prefers_cascade and contents.cascade is None:
        raise EnsembleError(
            f"--cascade: {chosen} has none here; it takes 2 members that are no voters and no "
            f"means of folds, and {MIN_IMAGES:,} images in the ens role."
        )
    contents = with_promises(contents, study, pool, chosen, promises)
    return write_bundle(folder, contents, overwrite=overwrite)


def _decision(selection: Selection, report: Report) -> Decision:
    """Return how the labels are decided; shares of votes are no probabilities to correct."""
    return MOST_PROBABLE if selection.combination.space == "vote" else report.decision


def _cascade(selection: Selection, pool: Pool, decision: Decision) -> Cascade | None:
    """Fit a cascade, where there is enough to fit it on.

    Not of members of folds: what the networks of one of them predict together for an image, nobody
    knows but for the one that did not see it.
    """
    ensemble = Ensemble(
        method=selection.combination.method,
        members=tuple(range(pool.n_models)),
        names=pool.names,
        combination=selection.combination,
        n_images=pool.n_images,
    )
    return fit_cascade(ensemble, pool, decision=decision) if can_cascade(ensemble) else None


def with_promises(
    contents: BundleContents, study: Study, pool: Pool, method: Method, promises: Promises
) -> BundleContents:
    """Fit sets and the threshold of answers on predictions that the fit did not see.

    The weights of the members are fitted anew without each fifth of the images; the members
    themselves were chosen on all of them, five of some dozens, which moves little. Of a member of
    folds it is the network that did not see an image that counts, and all together are no worse.

    Args:
        contents: A bundle that promises nothing.
        study: Where it comes from.
        pool: The predictions that its combination was fitted on.
        method: What fitted it.
        promises: What to promise; by default sets for `ALPHA`, if it can.

    Raises:
        EnsembleError: A promise cannot be kept.
    """
    if contents.combination.space == "vote":
        if promises.alpha is not None or promises.target_accuracy is not None:
            raise EnsembleError(
                "votes are no probabilities, so they promise nothing; export another method, "
                "or leave --alpha and --target-accuracy out."
            )
        return contents
    predictions = cross_fitted_predictions(
        pool,
        method=method,
        max_members=pool.n_models,
        seed=derive_seed(study.record.config.seed, "promises"),
    )
    alpha = ALPHA if promises.alpha is None else promises.alpha
    enough = promises.alpha is not None or pool.n_images >= 1 / ALPHA - 1
    target = promises.target_accuracy
    if target is not None and contents.decision != MOST_PROBABLE:
        raise EnsembleError(
            "--target-accuracy: answers are promised for the most probable class, but this study "
            "decides for balanced accuracy; leave it out."
        )
    return replace(
        contents,
        conformal=fit_conformal(predictions, pool.labels, alpha=alpha) if enough else None,
        rejection=fit_rejection(predictions, pool.labels, target_accuracy=target)
        if target is not None
        else None,
    )


def provenance_of(study: Study) -> Provenance:
    """Return where all bundles of a study come from."""
    libraries = ("concertino", "torch", "torchvision", "optuna", "numpy")
    return Provenance(
        study=study.name,
        dataset=study.record.config.data,
        dataset_fingerprint=study.record.data_fingerprint,
        n_images=study.record.role_sizes,
        seeds={"study": study.record.config.seed},
        versions={"python": platform.python_version()}
        | {name: version(name) for name in libraries},
    )

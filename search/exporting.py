"""From the ensemble of a study to a bundle."""

import platform
from importlib.metadata import version
from pathlib import Path

from ensembles.errors import EnsembleError
from ensembles.export import BundleContents, summarize_report, write_bundle
from ensembles.manifest import Manifest, Provenance
from ensembles.members import Member
from ensembles.methods import Method
from search.ensembling import read_ensemble
from search.predictions import read_weights
from search.study import Study
from spaces.recipe import recipe_from_json


def export_study(
    study: Study, folder: Path, *, method: Method | None = None, overwrite: bool = False
) -> Manifest:
    """Write the best of a study as one folder.

    Args:
        study: A study with an ensemble.
        folder: Where to write.
        method: What to export; default: the chosen ensemble where the test role established that
            it is better, else the best single model.
        overwrite: Replace an older bundle.

    Returns:
        What the bundle says of itself.

    Raises:
        NothingToDoError: The study has no ensemble yet.
        EnsembleError: The method was not built.
        SearchError: The weights of a member are gone.
        BundleError: The folder cannot be written.
    """
    result = read_ensemble(study.paths)
    chosen = method or result.worth_exporting
    if chosen not in result.selections:
        raise EnsembleError(
            f"method {chosen!r} was not built for this study; "
            f"there are {', '.join(result.selections)}."
        )
    selection = result.selections[chosen]
    recipes = {
        trial.number: recipe_from_json(trial.user_attrs["recipe"])
        for trial in study.trials()
        if trial.number in selection.trial_numbers
    }
    contents = BundleContents(
        members=[
            Member(
                trial=number,
                architecture=recipes[number].architecture,
                weights=read_weights(study.paths.trial(number)),
            )
            for number in selection.trial_numbers
        ],
        combination=selection.combination,
        classes=study.record.class_names,
        image_input=study.record.image_input,
        provenance=_provenance(study),
        report=summarize_report(result.report, exported=chosen),
    )
    return write_bundle(folder, contents, overwrite=overwrite)


def _provenance(study: Study) -> Provenance:
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

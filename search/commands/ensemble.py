"""Build the ensemble of a study again."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from ensembles.methods import Method
from search.paths import DEFAULT_STUDIES


def main(
    name: str | None = None,
    /,
    *,
    method: Method | None = None,
    soup: Annotated[bool, Parameter(negative="")] = False,
    max_members: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    max_latency: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    max_size: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    metrics: str = "",
    front: Annotated[bool, Parameter(negative="")] = False,
    seeds: Annotated[int | None, Parameter(validator=Number(gte=2, lte=99))] = None,
    folds: Annotated[int | None, Parameter(validator=Number(gte=2, lte=99))] = None,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Build the ensemble again from the stored predictions, and report on the test role.

    Nothing is trained but what `--seeds` and `--folds` ask for, here or in the study's settings,
    and only once. No weights are loaded unless their speed has to be measured, or they are
    averaged. Each look at the test role is counted.

    Args:
        name: Name of the study; default: the one that was worked on last.
        method: What to choose; default: by a rule that does not look at the test role.
        soup: Average, for each trial, those of its snapshots whose average predicts the ens role
            better; it becomes a candidate. Needs the images, and a study of `run --snapshots 3`.
        max_members: Members at the most; default: as the study was told.
        max_latency: Milliseconds that all members together may take for one image, on this
            machine's CPU and in one thread; the candidates are measured once.
        max_size: Megabytes that the weights of all members may have.
        metrics: What shall be reported besides, such as roc_auc,top_5_accuracy.
        front: Also show what accuracy costs: the ensembles that no cheaper one equals, by
            measured time.
        seeds: Train the best trial's recipe again until there are so many networks of it, and
            compare their mean with the ensemble; Ctrl-C keeps what is trained.
        folds: For small data: train the best trials again without each of so many folds of the
            images, and build the ensemble of these networks, on all images but those of the test
            role; Ctrl-C keeps what is trained.
        studies: Folder of studies.
        json: Print one JSON document.
    """
    from functools import partial  # noqa: PLC0415  # --help needs none of these

    from search.ensembling import Extras, build_ensemble, check_ensemble  # noqa: PLC0415
    from search.session import ensemble_and_report  # noqa: PLC0415
    from search.study import load_study  # noqa: PLC0415

    told = {"seeds": seeds, "folds": folds, "max_members": max_members}
    study = load_study(name, studies=studies)
    study = study.told(**{key: value for key, value in told.items() if value is not None})
    wishes: dict[str, Any] = {
        "method": method or "auto",
        "max_latency": max_latency,
        "max_size": max_size,
        "extras": Extras(
            metrics=tuple(each.strip() for each in metrics.split(",") if each.strip()),
            front=front,
        ),
    }
    return ensemble_and_report(
        study,
        partial(build_ensemble, **wishes),
        check=partial(check_ensemble, **wishes, soup=soup),
        soup=soup,
        json=json,
    )

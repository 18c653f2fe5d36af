"""Train one network that learns from the ensemble of a study."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from ensembles.methods import Method
from search.paths import DEFAULT_STUDIES


def main(
    name: str | None = None,
    /,
    *,
    out: Path = Path("student"),
    method: Method | None = None,
    student: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    students: Annotated[int, Parameter(validator=Number(gte=1, lte=100))] = 1,
    epochs: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    temperature: Annotated[float, Parameter(validator=Number(gt=0, lte=100))] = 3.0,
    share: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.9,
    budget: str | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train a student that learns from the ensemble, and write it as one folder.

    The student learns from the train role, its best round is chosen on the stop role, and its
    temperature on the ens role; then the test role is opened once more, for student, ensemble and
    best single trial. Ctrl-C keeps everything; the same command goes on, and what is trained is
    not trained again.

    Args:
        name: Name of the study; default: the one that was worked on last.
        out: Folder to write.
        method: Ensemble that teaches; default: the choice.
        student: Trial whose recipe the student gets; default: the best one.
        students: Train so many students of different recipes, those of the best trials first,
            then points of the space; the best on the stop role is taken.
        epochs: Epochs of a student; default: as many as a trial has.
        temperature: At which student and ensemble are compared; above 1, the wrong classes that
            are alike count for more.
        share: Of the loss that the ensemble decides; the labels decide the rest.
        budget: Time for everything: 90s, 15m, 1h30m; students that are not trained then are left
            out.
        overwrite: Replace an older bundle.
        studies: Folder of studies.
        json: Print one JSON document.
    """
    from search.config import validate_config  # noqa: PLC0415  # --help needs none of these
    from search.distill_session import distill_and_report  # noqa: PLC0415
    from search.distilling import Wish  # noqa: PLC0415
    from search.schedule import training_end  # noqa: PLC0415
    from search.study import load_study  # noqa: PLC0415

    config = validate_config({"budget": budget}, source="distill")
    ends_at = training_end(config, started=time.monotonic())
    wish = Wish(
        method=method,
        trial_number=student,
        n_students=students,
        epochs=epochs,
        temperature=temperature,
        share=share,
    )
    return distill_and_report(
        load_study(name, studies=studies),
        wish,
        out,
        ends_at=ends_at,
        overwrite=overwrite,
        json=json,
    )

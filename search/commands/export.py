"""Write the best of a study as one folder."""

import json as json_format
import sys
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
    out: Path = Path("model"),
    method: Method | None = None,
    force_ensemble: Annotated[bool, Parameter(negative="")] = False,
    alpha: Annotated[float | None, Parameter(validator=Number(gt=0, lt=1))] = None,
    target_accuracy: Annotated[float | None, Parameter(validator=Number(gt=0, lt=1))] = None,
    cascade: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write the ensemble, or the best single model where it is as good, as one folder.

    Args:
        name: Name of the study; default: the one that was worked on last.
        out: Folder to write.
        method: Export this method whatever the verdict.
        force_ensemble: Export the chosen ensemble even where it is not established to be better.
        alpha: Share of pictures whose set of possible classes may miss the true one
            (`predict --sets`); default: 0.1.
        target_accuracy: Answer only for pictures that are sure enough for their labels to be
            right this often (`predict --reject`); default: answer for all.
        cascade: Let the folder predict as a cascade unless it is told otherwise.
        overwrite: Replace an older bundle.
        studies: Folder of studies.
        json: Print one JSON document.
    """
    from search.candidate_names import (  # noqa: PLC0415  # --help needs none of these
        candidate_titles,
        trial_of,
    )
    from search.ensembling import read_ensemble  # noqa: PLC0415
    from search.exporting import Promises, export_study  # noqa: PLC0415
    from search.study import load_study  # noqa: PLC0415

    study = load_study(name, studies=studies)
    result = read_ensemble(study.paths)
    if method is None and force_ensemble:
        method = result.report.choice
    chosen = method or result.worth_exporting
    promises = Promises(alpha=alpha, target_accuracy=target_accuracy, cascade=cascade)
    manifest = export_study(study, out, method=chosen, promises=promises, overwrite=overwrite)
    n_bytes = sum(member.n_bytes for member in manifest.members)
    names = [member.name for member in manifest.members]
    if json:
        document = {
            "schema": 1,
            "folder": str(out),
            "method": chosen,
            "trials": [trial_of(name) for name in names],
            "members": names,
            "bytes": n_bytes,
        }
        print(json_format.dumps(document))
        return
    if chosen == "single" and result.report.choice != "single":
        print(
            "The ensemble is not established to be better than the best single trial, so the "
            "single model is exported; --force-ensemble exports the ensemble.",
            file=sys.stderr,
        )
    members = ", ".join(candidate_titles(names))
    print(f"{out}: {chosen}, {members}, {n_bytes / 1e6:.2f} MB")

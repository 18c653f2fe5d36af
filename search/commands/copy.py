"""Move the trials of a study to another storage."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.paths import DEFAULT_STUDIES


def main(
    name: str,
    /,
    *,
    to: str,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
) -> None:
    """Copy the trials of a study from SQLite to PostgreSQL or back; it goes on with the copy.

    Its folder stays, with weights, predictions and all else. What was copied is kept under another
    name. No run and no worker may be on the study meanwhile.

    Args:
        name: Name of the study.
        to: URL of a PostgreSQL database, postgresql://USER@HOST/DATABASE; or the study's own
            folder, studies/NAME, for SQLite.
        studies: Folder of studies.
    """
    from search.copying import copy_study  # noqa: PLC0415  # --help needs no Optuna
    from search.study import load_study  # noqa: PLC0415

    study = load_study(name, studies=studies)
    copied = copy_study(study.paths, to)
    print(
        f"study {name}: {copied.n_trials} trials copied from {copied.source} to {copied.target}, "
        f"which it uses from now on; the old ones are kept: {copied.kept}"
    )

"""The studies there are."""

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.paths import DEFAULT_STUDIES
from search.words import n_of


def main(
    *,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """List the studies, the one that was worked on last first.

    Args:
        studies: Folder of studies.
        json: Print one JSON document.
    """
    from search.documents import list_document  # noqa: PLC0415  # --help needs no Optuna

    document = list_document(studies)
    if json:
        print(json_format.dumps(document))
        return
    if not document["studies"]:
        print(f"there is no study in {studies} yet; `python -m search run` makes one.")
    for row in document["studies"]:
        if row["problem"]:
            print(f"{row['study']:<24} {row['problem']}")
            continue
        best = "" if row["best"] is None else f"best log-loss {row['best']['log_loss']:.4f}"
        print(f"{row['study']:<24} {n_of(row['finished'], row['trials']):>12} trials  {best}")

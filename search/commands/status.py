"""How far a study is."""

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.paths import DEFAULT_STUDIES
from search.words import n_of


def main(
    name: str | None = None,
    /,
    *,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show how far a study is.

    Args:
        name: Name of the study; default: the one that was worked on last.
        studies: Folder of studies.
        json: Print one JSON document.
    """
    from search.documents import status_document  # noqa: PLC0415  # --help needs no Optuna
    from search.study import load_study  # noqa: PLC0415

    document = status_document(load_study(name, studies=studies))
    if json:
        print(json_format.dumps(document))
        return
    best = document["best"]
    print(f"study {document['study']}: {'running' if document['active'] else 'not running'}")
    print(
        f"  trials   {n_of(document['finished'], document['trials'])} finished: "
        f"{document['complete']} complete, {document['pruned']} pruned; "
        f"{document['running']} running, {document['failed']} failed"
    )
    for sentence in document["stopped_slots"]:
        print(f"  stopped  {sentence}")
    print(f"  data     {document['data']}: {document['images']}, {document['classes']} classes")
    if best:
        print(
            f"  best     trial {best['number']}: log-loss {best['log_loss']:.4f}, "
            f"accuracy {100 * best['accuracy']:.2f} % on the stop role"
        )
    so_far = document["ensemble_so_far"]
    if so_far and not document["verdict"]:
        print(f"  so far   {so_far['sentence']}, after {so_far['n_finished']} trials")
    if document["verdict"]:
        print(f"  ensemble {document['verdict']}")

"""What studies hold on the disk, and what of it can go."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from search.paths import DEFAULT_STUDIES


def main(
    name: str | None = None,
    /,
    *,
    keep: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    predictions: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Show what studies hold on the disk, and free what nobody needs.

    Unfinished files of processes that were killed, checkpoints and superfluous weights of trials
    that have ended, and decoded images that no study has: that is safe while a search runs. What
    the newest ensembles are made of always stays.

    Args:
        name: Name of the study; default: all of them, and the decoded images that they share.
        keep: Free weights of all trials but the best so many, and three of each family.
        predictions: Free the predictions of trials without weights too: no ensemble is built from
            them.
        dry_run: Only show what would go.
        studies: Folder of studies.
        json: Print one JSON document.
    """
    from search.cleaning import Wish  # noqa: PLC0415  # --help needs no Optuna
    from search.disk import format_bytes  # noqa: PLC0415
    from search.documents import clean_document  # noqa: PLC0415

    wish = Wish(keep=keep, predictions=predictions, dry_run=dry_run)
    document = clean_document(name, studies, wish)
    has_problem = any(study["problem"] for study in document["studies"])
    if json:
        print(json_format.dumps(document))
        return 5 if has_problem else 0
    for study in document["studies"]:
        print(f"study {study['study']}{': ' if study['problem'] else ''}{study['problem'] or ''}")
        _print_holdings(study["holdings"], dry_run=dry_run)
    if document["shared"]:
        print("shared by all studies")
        _print_holdings(document["shared"], dry_run=dry_run)
    freed = format_bytes(document["freed_bytes"])
    free = format_bytes(document["free_bytes"])
    print(f"{freed} {'would be' if dry_run else 'were'} freed; {free} are free on the disk")
    return 5 if has_problem else 0


def _print_holdings(holdings: list[dict[str, Any]], *, dry_run: bool) -> None:
    from search.disk import format_bytes  # noqa: PLC0415

    for each in holdings:
        went = ("  would go" if dry_run else "  freed") if each["goes"] else ""
        files = "1 file" if each["n_files"] == 1 else f"{each['n_files']} files"
        print(f"  {each['kind']:<48} {files:>12} {format_bytes(each['n_bytes']):>10}{went}")

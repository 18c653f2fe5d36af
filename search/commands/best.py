"""The best trials of a study."""

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from search.paths import DEFAULT_STUDIES


def main(
    name: str | None = None,
    /,
    *,
    top: Annotated[int, Parameter(validator=Number(gte=1))] = 10,
    params: Annotated[bool, Parameter(negative="")] = False,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show the best trials of a study, best first.

    Args:
        name: Name of the study; default: the one that was worked on last.
        top: How many.
        params: Show what each of them chose.
        studies: Folder of studies.
        json: Print one JSON document, parameters included.
    """
    from rich.console import Console  # noqa: PLC0415  # --help needs neither rich nor Optuna
    from rich.table import Table  # noqa: PLC0415

    from search.documents import best_document  # noqa: PLC0415
    from search.study import load_study  # noqa: PLC0415

    document = best_document(load_study(name, studies=studies), top)
    if json:
        print(json_format.dumps(document))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("trial", "log-loss", "accuracy", "epochs", "seconds", "parameters"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["trials"]:
        table.add_row(
            str(row["number"]),
            f"{row['log_loss']:.4f}",
            f"{100 * row['accuracy']:.2f} %",
            f"{row['epochs']:g}",
            f"{row['seconds']:.1f}",
            f"{row['parameters']:,}",
        )
    console = Console()
    console.print(f"study {document['study']}, scores on the stop role", highlight=False)
    console.print(table)
    for row in document["trials"] if params else ():
        console.print(f"trial {row['number']}", style="bold", highlight=False)
        for key, value in sorted(row["params"].items()):
            console.print(f"  {key} = {value}", highlight=False)

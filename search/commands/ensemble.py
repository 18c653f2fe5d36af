"""Build the ensemble of a study again."""

import json as json_format
from dataclasses import asdict
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
    method: Method | None = None,
    soup: Annotated[bool, Parameter(negative="")] = False,
    max_members: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    max_latency: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    max_size: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    metrics: str = "",
    front: Annotated[bool, Parameter(negative="")] = False,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Build the ensemble again from the stored predictions, and report on the test role.

    Nothing is trained, and no weights are loaded unless their speed has to be measured, or they
    are averaged. Each look at the test role is counted.

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
        studies: Folder of studies.
        json: Print one JSON document.
    """
    from rich.console import Console  # noqa: PLC0415  # --help needs none of these

    from search.absences import describe_absent  # noqa: PLC0415
    from search.ensembling import Extras, build_ensemble  # noqa: PLC0415
    from search.reporting import (  # noqa: PLC0415
        print_ensemble,
        print_next_commands,
        print_soups,
    )
    from search.study import load_study  # noqa: PLC0415

    study = load_study(name, studies=studies)
    console = Console()
    soups = []
    if soup:
        from search.soups import make_soups  # noqa: PLC0415

        with Console(stderr=True).status("averaging the snapshots of each trial"):
            soups = make_soups(study)
    result = build_ensemble(
        study,
        method=method or "auto",
        max_members=max_members,
        max_latency=max_latency,
        max_size=max_size,
        extras=Extras(
            metrics=tuple(each.strip() for each in metrics.split(",") if each.strip()),
            front=front,
        ),
    )
    if json:
        made = {"soups": [asdict(each) for each in soups]} if soup else {}
        print(json_format.dumps({**result.to_json(), **made}))
        return
    if soups:
        print_soups(console, soups)
    print_ensemble(console, result)
    console.print()
    if absent := describe_absent(study):
        Console(stderr=True).print(absent, style="yellow", highlight=False, soft_wrap=True)
    print_next_commands(console, study, studies)

"""How the result of a run is shown to people."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ensembles.latency import Cost
from ensembles.pareto import Front
from ensembles.report import Report
from search.ensembling import EnsembleResult
from search.explaining import (
    Cells,
    asked_cells,
    calibration_line,
    cascade_line,
    choice_line,
    diversity_line,
    front_cells,
    member_cells,
    openings_line,
    reliability_cells,
    seeds_line,
    table_cells,
)
from search.soup_records import Soup
from search.study import Study
from search.trials import trial_row
from search.words import command, program


def print_ensemble(console: Console, result: EnsembleResult) -> None:
    """Print the table of all ensembles on the test role, and the verdict."""
    report = result.report
    print_cells(console, table_cells(report), marked=report.choice)
    if asked := asked_cells(report):
        console.print()
        print_cells(console, asked, marked=report.choice)
    for reason in report.refused.values():
        _say(console, f"left out: {reason}", style="dim")
    _say(
        console,
        f"> {choice_line(report)}; {openings_line(report)}",
        style="dim",
    )
    console.print()
    _say(console, report.sentence)
    if report.against_seeds:
        _say(console, seeds_line(report, report.against_seeds))
    console.print()
    print_explanation(console, report, front=result.front)


def print_soups(console: Console, soups: Sequence[Soup]) -> None:
    """Print what was averaged of each trial, and what it gained where it was chosen."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("soup of", no_wrap=True)
    table.add_column("best alone", justify="right", no_wrap=True)
    table.add_column("averaged", justify="right", no_wrap=True)
    table.add_column("networks")
    for soup in soups:
        names = ", ".join(soup.ingredients)
        table.add_row(
            f"trial {soup.trial}",
            f"{soup.best_log_loss:.4f}",
            f"{soup.log_loss:.4f}" if soup.is_average else "-",
            f"{len(soup.ingredients)} of {len(soup.offered)}: {names}"
            if soup.is_average
            else f"{names} alone: no average with it is better",
        )
    console.print(table, highlight=False)
    _say(console, "log-loss on the ens role, where the networks were chosen", style="dim")
    console.print()


def print_explanation(
    console: Console,
    report: Report,
    *,
    front: Front | None = None,
    costs: Mapping[str, Cost] | None = None,
) -> None:
    """Print why these members, and what the choice's scores and confidences are worth.

    At most some 20 lines; all of it stands in the JSON with more digits.

    Args:
        console: Where to.
        report: Of an ensemble; what it does not know is not told.
        front: Cheaper and dearer ensembles.
        costs: Of each member, by its name.
    """
    explanation = report.explanation
    if explanation and len(explanation.members) > 1:
        print_cells(console, member_cells(explanation, costs))
        _say(console, diversity_line(explanation), style="dim")
        console.print()
    if report.reliability_before and report.reliability:
        print_cells(console, reliability_cells(report.reliability_before, report.reliability))
        _say(console, calibration_line(report.reliability_before, report.reliability))
    if report.cascade:
        _say(console, cascade_line(report.cascade))
    if report.overtuning:
        _say(console, report.overtuning.sentence())
    if front:
        console.print()
        print_cells(console, front_cells(front))


def print_cells(console: Console, cells: Cells, *, marked: str | None = None) -> None:
    """Print a table; the row whose first cell is `marked` stands out."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, heading in enumerate(cells.headings):
        # On a narrow screen a long title takes two lines; numbers must not be cut off.
        table.add_column(heading, justify="right" if place else "left", no_wrap=place > 0)
    for first, *others in cells.rows:
        mark = "" if marked is None else "> " if first == marked else "  "
        table.add_row(mark + first, *others, style="bold" if first == marked else "")
    console.print(table, highlight=False)


def print_best(console: Console, study: Study) -> None:
    """Print the best trial and what it chose."""
    leaders = study.leaders()
    if not leaders:
        return
    row = trial_row(leaders[0])
    _say(
        console,
        f"best trial: {row.number}, log-loss {row.log_loss or 0:.4f}, accuracy "
        f"{100 * (row.accuracy or 0):.2f} % on the stop role, {row.parameters or 0:,} weights",
    )


def print_next_commands(console: Console, study: Study, studies: Path) -> None:
    """Print what a user may type next."""
    console.print("next:", style="bold")
    for line in (
        command(f"export {study.name} --out model", studies),
        f"{program()} predict model PICTURES...",
        command(f"dashboard {study.name}", studies),
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def _say(console: Console, text: str, style: str = "") -> None:
    """Print a sentence; where it goes to no terminal, it stays on one line."""
    console.print(text, style=style, highlight=False, soft_wrap=not console.is_terminal)

"""What a user sees of a run: progress on stderr, the report on stdout, an exit code."""

import json as json_format
from pathlib import Path
from typing import Any

from rich.console import Console

from search.config import StudyConfig
from search.durations import format_duration
from search.interruption import Interruption, watched_signals
from search.live import LiveView
from search.reporting import print_best, print_ensemble, print_next_commands
from search.running import Observer, RunResult, run_study


def run_and_report(given: StudyConfig, *, studies: Path, json: bool) -> int:
    """Run a study, show how it goes, and print its report.

    Args:
        given: What was asked.
        studies: Folder of studies.
        json: Print one JSON document instead of the report.

    Returns:
        The exit code.
    """
    progress, report = Console(stderr=True), Console()
    with watched_signals() as interruption, LiveView(console=progress) as view:
        observer = Observer(
            on_change=view.show, on_decode=view.show_decoding, stop_requested=interruption
        )
        result = run_study(given, studies=studies, observer=observer)
    if json:
        report.file.write(json_format.dumps(_document(result)) + "\n")
    else:
        _print_report(report, result, studies)
    _print_remarks(progress, result, interruption, studies)
    return _exit_code(result, interruption)


def _print_report(console: Console, result: RunResult, studies: Path) -> None:
    counts = result.study.counts()
    console.print(
        f"study {result.study.name}: {counts.finished} of {result.study.record.config.trials} "
        f"trials finished ({counts.complete} complete, {counts.pruned} pruned) "
        f"after {format_duration(result.seconds)}",
        highlight=False,
    )
    print_best(console, result.study)
    if result.ensemble:
        console.print()
        print_ensemble(console, result.ensemble)
        console.print()
        print_next_commands(console, result.study, studies)


def _print_remarks(
    console: Console, result: RunResult, interruption: Interruption, studies: Path
) -> None:
    record, name = result.study.record, result.study.name
    where = "" if studies == Path("studies") else f" --studies {studies}"
    if record.skipped:
        console.print(
            f"{record.skipped} files could not be read and were left out; "
            f"their names are in {result.study.paths.log}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    if interruption():
        console.print(
            f"interrupted; everything is kept, and running trials go on from their last "
            f"checkpoint: python -m search resume {name}{where}",
            highlight=False,
            soft_wrap=True,
        )
    elif result.end.out_of_time:
        console.print(
            f"the budget ended the search before all trials were finished; for the rest: "
            f"python -m search resume {name}{where}",
            highlight=False,
            soft_wrap=True,
        )


def _exit_code(result: RunResult, interruption: Interruption) -> int:
    if interruption():
        return interruption.exit_code
    if result.ensemble is None:
        return 3
    return 5 if result.study.record.skipped else 0


def _document(result: RunResult) -> dict[str, Any]:
    counts = result.study.counts()
    leaders = result.study.leaders()
    return {
        "schema": 1,
        "study": result.study.name,
        "trials": result.study.record.config.trials,
        "finished": counts.finished,
        "complete": counts.complete,
        "pruned": counts.pruned,
        "failed": counts.failed,
        "seconds": round(result.seconds, 2),
        "interrupted": result.end.interrupted,
        "out_of_time": result.end.out_of_time,
        "skipped": result.study.record.skipped,
        "best_trial": leaders[0].number if leaders else None,
        "ensemble": result.ensemble.to_json() if result.ensemble else None,
    }

"""What a user sees of a run: progress on stderr, the report on stdout, an exit code."""

import json as json_format
from pathlib import Path
from typing import Any

from rich.console import Console

from search.absences import count_absent, describe_absent
from search.config import StudyConfig
from search.data.store import open_store
from search.durations import format_duration
from search.interruption import Interruption, watched_signals
from search.live import LiveView
from search.record import StudyRecord
from search.reporting import print_best, print_ensemble, print_next_commands
from search.running import Observer, RunResult, run_study
from search.words import command, n_of

N_NAMED = 10
"""Files that are named on the screen."""


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

        def on_decode(n_done: int, n_images: int) -> None:
            view.show_decoding(n_done, n_images)
            if interruption():
                progress.print("interrupted while decoding images; the study is not begun")
                raise SystemExit(interruption.exit_code)

        observer = Observer(
            on_change=view.show,
            on_ensemble=view.show_ensemble,
            on_decode=on_decode,
            stop_requested=interruption,
        )
        result = run_study(given, studies=studies, observer=observer)
    if json:
        report.file.write(json_format.dumps(_document(result)) + "\n")
    else:
        _print_report(report, result, studies)
    _print_remarks(progress, result, studies)
    return _exit_code(result, interruption)


def _print_report(console: Console, result: RunResult, studies: Path) -> None:
    counts = result.study.counts()
    console.print(
        f"study {result.study.name}: {n_of(counts.finished, result.study.record.config.trials)} "
        f"trials finished ({counts.complete} complete, {counts.pruned} pruned) "
        f"after {format_duration(result.seconds)}",
        highlight=False,
        soft_wrap=not console.is_terminal,
    )
    print_best(console, result.study)
    if result.ensemble:
        console.print()
        print_ensemble(console, result.ensemble)
        console.print()
        print_next_commands(console, result.study, studies)


def _print_remarks(console: Console, result: RunResult, studies: Path) -> None:
    record = result.study.record
    resume = command(f"resume {result.study.name}", studies)
    for remark in (*_data_remarks(record), *_absence_remarks(result)):
        console.print(remark, style="yellow", highlight=False, soft_wrap=True)
    if result.end.interrupted:
        console.print(
            f"interrupted; everything is kept, and running trials go on from their last "
            f"checkpoint: {resume}",
            highlight=False,
            soft_wrap=True,
        )
    elif result.end.out_of_time:
        console.print(
            f"the budget ended the search before all trials were finished; for the rest: {resume}",
            highlight=False,
            soft_wrap=True,
        )
    elif result.ensemble is None:
        console.print(
            f"no trial left predictions, so there is no ensemble; why stands in "
            f"{result.study.paths.log}",
            highlight=False,
            soft_wrap=True,
        )


def _absence_remarks(result: RunResult) -> list[str]:
    """Say whose files lie on other hosts; while a run is interrupted, nobody looks for them."""
    absent = "" if result.end.interrupted else describe_absent(result.study)
    return [absent] if absent else []


def _data_remarks(record: StudyRecord) -> list[str]:
    """Say which files were left out, and which images play no role."""
    remarks = []
    if record.skipped:
        skipped = open_store(record.store).skipped
        files = "1 file" if len(skipped) == 1 else f"{len(skipped)} files"
        remarks.append(f"{files} could not be read and left out:")
        remarks += [f"  {each.name}: {each.reason}" for each in skipped[:N_NAMED]]
        if len(skipped) > N_NAMED:
            remarks.append(f"  ... and {len(skipped) - N_NAMED} more, named in the study's log")
    if record.dropped:
        remarks.append(
            f"{record.dropped} images are in two of the given splits; they are not trained on"
        )
    return remarks


def _exit_code(result: RunResult, interruption: Interruption) -> int:
    if result.end.interrupted:
        return interruption.exit_code
    if result.ensemble is None:
        return 3
    return 5 if result.study.record.skipped or count_absent(result.study) else 0


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

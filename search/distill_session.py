"""What a user sees of a distillation: progress on stderr, the report on stdout, an exit code."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ensembles.distillation import DistillationReport
from ensembles.manifest import Manifest
from search.distilled import Distilled, Student
from search.distilling import Wish, check_folder, distill, export_student
from search.explaining import TEST_HEADINGS, Cells, figure_cells
from search.extra_trainings import Effort
from search.interruption import until_interrupted, watched_signals
from search.live import LiveView
from search.reporting import print_cells
from search.study import Study


def distill_and_report(
    study: Study,
    wish: Wish,
    folder: Path,
    *,
    ends_at: float | None,
    overwrite: bool,
    json: bool,
) -> int:
    """Distill the ensemble of a study, show how it goes, write the student and print its report.

    Args:
        study: A study with an ensemble.
        wish: What student is wanted.
        folder: Where to write it.
        ends_at: `time.monotonic()` at which trainings are put aside.
        overwrite: Replace an older bundle.
        json: Print one JSON document instead of the report.

    Returns:
        The exit code.
    """
    check_folder(folder, overwrite=overwrite)
    progress, report = Console(stderr=True), Console()
    with watched_signals() as interruption, LiveView(console=progress) as view:
        effort = Effort(
            ends_at=ends_at,
            on_change=view.show,
            on_decode=until_interrupted(interruption, view.show_decoding, progress.print),
            stop_requested=interruption,
        )
        distilled = distill(study, wish, effort=effort)
    if distilled is None:
        _explain_nothing(progress, interrupted=interruption())
        return interruption.exit_code if interruption() else 3
    manifest = export_student(study, distilled, folder, overwrite=overwrite)
    n_missing = wish.n_students - len(distilled.students)
    if json:
        report.file.write(json_format.dumps(_document(study, distilled, folder, manifest)) + "\n")
    else:
        print_distillation(report, distilled)
        report.print()
        _say(report, f"{folder}: {_title(distilled)}, {_megabytes(manifest):.2f} MB")
    if n_missing:
        _say(
            progress,
            f"{n_missing} of {wish.n_students} students could not be trained, or not in time; "
            f"why stands in {study.paths.log}",
        )
    return 5 if n_missing else 0


def print_distillation(console: Console, distilled: Distilled) -> None:
    """Print the students, and how the best one fares beside its teacher and the single model."""
    report = distilled.report
    if len(distilled.students) > 1:
        print_cells(console, _student_cells(distilled.students), marked=distilled.student.recipe)
        console.print()
    print_cells(console, _contestant_cells(report), marked=report.student.name)
    times = "once" if report.n_test_openings == 1 else f"{report.n_test_openings} times"
    _say(
        console,
        f"> one network with the recipe of {distilled.student.recipe}, taught by the ensemble; "
        f"the test role has been opened {times} so far",
        style="dim",
    )
    console.print()
    _say(console, report.retained)
    _say(console, report.verdict)


def _student_cells(students: Sequence[Student]) -> Cells:
    """Return what several students reached on the stop role, the best first."""
    return Cells(
        headings=("students on the stop role", "accuracy", "log-loss"),
        rows=tuple(
            (each.recipe, f"{100 * each.accuracy:.2f} %", f"{each.log_loss:.4f}")
            for each in students
        ),
    )


def _contestant_cells(report: DistillationReport) -> Cells:
    return Cells(
        headings=TEST_HEADINGS,
        rows=tuple(
            (each.name, *figure_cells(each.test), str(each.n_members), f"{each.cost:.1f} x")
            for each in (report.single, report.ensemble, report.student)
        ),
    )


def _explain_nothing(console: Console, *, interrupted: bool) -> None:
    reason = "interrupted" if interrupted else "the budget ended before a student was trained"
    _say(
        console,
        f"{reason}; everything is kept, and the same command goes on from the last checkpoint",
    )


def _title(distilled: Distilled) -> str:
    student = distilled.student
    return f"a student of {distilled.teacher} with the recipe of {student.recipe}"


def _megabytes(manifest: Manifest) -> float:
    return sum(member.n_bytes for member in manifest.members) / 1e6


def _document(
    study: Study, distilled: Distilled, folder: Path, manifest: Manifest
) -> dict[str, Any]:
    return {
        "schema": 1,
        "study": study.name,
        "folder": str(folder),
        "bytes": manifest.members[0].n_bytes,
        "verdict": distilled.report.verdict,
        "retained": distilled.report.retained,
        **distilled.to_json(),
    }


def _say(console: Console, text: str, style: str = "") -> None:
    """Print a sentence; where it goes to no terminal, it stays on one line."""
    console.print(text, style=style, highlight=False, soft_wrap=not console.is_terminal)

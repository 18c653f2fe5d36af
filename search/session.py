"""What a user sees of a run: progress on stderr, the report on stdout, an exit code."""

import json as json_format
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from search.absences import count_absent, describe_absent
from search.candidate_names import candidate_title
from search.config import StudyConfig
from search.data.store import open_store
from search.durations import format_duration
from search.ensembling import EnsembleResult
from search.extra_trainings import Effort, Trained
from search.interruption import Interruption, until_interrupted, watched_signals
from search.live import LiveView
from search.logs import logged_to_file
from search.orders import train_what_is_asked
from search.preparation import with_images
from search.record import StudyRecord
from search.reporting import print_best, print_ensemble, print_next_commands, print_soups
from search.running import Observer, RunResult, run_study
from search.schedule import Plan
from search.soup_records import Soup
from search.study import Study
from search.trials import OUT_OF_TIME
from search.words import command, n_of

FEW_IMAGES = 2000
"""To learn, stop and choose on; with fewer, folds are suggested."""
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
        observer = Observer(
            on_change=view.show,
            on_ensemble=view.show_ensemble,
            on_shortage=view.show_shortage,
            on_warning=view.show_warning,
            on_decode=until_interrupted(interruption, view.show_decoding, progress.print),
            stop_requested=interruption,
        )
        result = run_study(given, studies=studies, observer=observer)
    if json:
        report.file.write(json_format.dumps(_document(result)) + "\n")
    else:
        _print_report(report, result, studies)
    _print_remarks(progress, result, studies)
    return _exit_code(result, interruption)


def ensemble_and_report(
    study: Study,
    build: Callable[[Study], EnsembleResult],
    *,
    check: Callable[[Study], None],
    soup: bool,
    json: bool,
) -> int:
    """Train what a study's settings ask for besides its trials, build its ensemble, and report.

    Args:
        study: A study with finished trials.
        build: Builds the ensemble.
        check: Refuses what cannot be built, where something is to be trained first.
        soup: Average the snapshots of each trial first.
        json: Print one JSON document instead of the report.

    Returns:
        The exit code.
    """
    progress, report = Console(stderr=True), Console()
    with logged_to_file(study.paths.log):
        with watched_signals() as interruption, LiveView(console=progress) as view:
            on_decode = until_interrupted(interruption, view.show_decoding, progress.print)
            study = with_images(study, on_decode)
            if soup or study.record.config.seeds or study.record.config.folds:
                check(study)
            effort = Effort(on_change=view.show, on_decode=on_decode, stop_requested=interruption)
            extras = train_what_is_asked(study, effort)
        if any(each.end.interrupted for each in extras):
            _say(progress, "interrupted; everything is kept, and the same command goes on")
            return interruption.exit_code
        soups = _make_soups(study, progress) if soup else []
        result = build(study)
    if json:
        made = {"soups": [asdict(each) for each in soups]} if soup else {}
        report.file.write(json_format.dumps({**result.to_json(), **made}) + "\n")
    else:
        if soups:
            print_soups(report, soups)
        print_ensemble(report, result)
        report.print()
        print_next_commands(report, study, study.paths.folder.parent)
    absent = _absence_remarks(study)
    for remark in [*absent, *_extra_remarks(extras)]:
        _say(progress, remark, style="yellow")
    return 5 if absent or any(each.failures for each in extras) else 0


def _make_soups(study: Study, progress: Console) -> list[Soup]:
    from search.soups import make_soups  # noqa: PLC0415  # it imports torch

    with progress.status("averaging the snapshots of each trial"):
        return make_soups(study)


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
    absent = [] if result.end.interrupted else _absence_remarks(result.study)
    remarks = [
        *_size_remarks(result, studies),
        *_length_remarks(record.plan, result.study.trials()),
    ]
    remarks += [*_data_remarks(record), *absent]
    for remark in [*remarks, *_extra_remarks(result.extras), *_slot_remarks(result)]:
        _say(console, remark, style="yellow")
    if result.end.interrupted:
        _say(
            console,
            f"interrupted; everything is kept, and running trials go on from their last "
            f"checkpoint: {resume}",
        )
    elif result.end.out_of_time:
        _say(
            console,
            f"the budget ended the search before all trials were finished; for the rest: {resume}",
        )
    elif result.ensemble is None:
        _say(
            console,
            f"no trial left predictions, so there is no ensemble; why stands in "
            f"{result.study.paths.log}",
        )
    elif any(each.n_missing for each in result.extras):
        _say(console, f"for the trainings that the budget left no time for: {resume}")


def _extra_remarks(extras: Sequence[Trained]) -> list[str]:
    """Say which trainings after the search are missing."""
    remarks = []
    for each in extras:
        remarks += [f"{candidate_title(name)}: {why}" for name, why in each.failures.items()]
        n_orders = len(each.trials) + len(each.failures) + each.n_missing
        if each.n_missing:
            remarks.append(
                f"{each.n_missing} of {n_orders} trainings after the search are missing"
            )
    return remarks


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, highlight=False, soft_wrap=True)


def _absence_remarks(study: Study) -> list[str]:
    """Say whose files lie on other hosts."""
    absent = describe_absent(study)
    return [absent] if absent else []


def _size_remarks(result: RunResult, studies: Path) -> list[str]:
    """Suggest folds where there are few images."""
    record = result.study.record
    n_images = sum(record.role_sizes[role] for role in ("train", "stop", "ens"))
    if not result.ensemble or record.config.folds is not None or n_images >= FEW_IMAGES:
        return []
    folds = command(f"ensemble {result.study.name} --folds 5", studies)
    few = f"{n_images:,} images are few; an ensemble of networks that learn from more of them, "
    return [f"{few}fitted on all of them: {folds}"]


def _length_remarks(plan: Plan, trials: Sequence[FrozenTrial]) -> list[str]:
    """Say if the time of a trial went into other things than training."""
    # A pruner's decision says nothing of the time; a trial that had none left does.
    epochs = [
        float(trial.user_attrs.get("epochs", 0))
        for trial in trials
        if trial.state == TrialState.COMPLETE or trial.user_attrs.get("ending") == OUT_OF_TIME
    ]
    if plan.seconds is None or not epochs or statistics.median(epochs) >= 1:
        return []
    trained = f"trials trained for {statistics.median(epochs):.2g} epochs in the median: "
    others = (
        "so many images, looks at rounds and predictions at the end allow no more in the time "
    )
    cure = "give it fewer --trials, more --budget or --trial-budget, or a smaller --image-size"
    return [f"{trained}{others}of one, {format_duration(plan.seconds)}; {cure}"]


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


def _slot_remarks(result: RunResult) -> list[str]:
    """Say which slots had no part in the end of the run, and why."""
    return [each.sentence() for each in result.end.stopped_slots]


def _exit_code(result: RunResult, interruption: Interruption) -> int:
    if result.end.interrupted:
        return interruption.exit_code
    if result.end.stopped_slots and result.end.out_of_time:
        return 1
    if result.ensemble is None:
        return 3
    missing = any(each.failures or each.n_missing for each in result.extras)
    missing = missing or bool(count_absent(result.study))
    return 5 if result.study.record.skipped or missing else 0


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
        "stopped_slots": [each.sentence() for each in result.end.stopped_slots],
        "skipped": result.study.record.skipped,
        "best_trial": leaders[0].number if leaders else None,
        "ensemble": result.ensemble.to_json() if result.ensemble else None,
    }

"""Writes an ensemble as a bundle, the folder that `ensembles.bundle` reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from ensembles.bundle import load_bundle
from ensembles.cascade import Cascade
from ensembles.combination import Combination
from ensembles.conformal import Conformal, Rejection
from ensembles.decision import MOST_PROBABLE, Decision
from ensembles.distillation import DistillationReport
from ensembles.errors import BundleError
from ensembles.folders import new_folder, write_file
from ensembles.inputs import ImageInput
from ensembles.manifest import (
    FORMAT,
    FORMAT_VERSION,
    CascadeFigures,
    Figures,
    Manifest,
    MemberRecord,
    Number,
    Provenance,
    ReportRecord,
    SelfTestRecord,
    check_image_input,
    first_problem,
    manifest_to_text,
)
from ensembles.members import Member, load_network, write_member
from ensembles.methods import Method
from ensembles.model_card import render_model_card
from ensembles.predictor import Predictor, active_members
from ensembles.report import Figures as Measured
from ensembles.report import Report
from ensembles.self_test import write_self_test
from spaces.errors import SpaceError
from spaces.task import Task

_NAMES = frozenset({"manifest.json", "members", "self_test.safetensors", "README.md"})


@dataclass(frozen=True, kw_only=True, eq=False)
class BundleContents:
    """What `write_bundle` puts into a folder."""

    members: Sequence[Member]
    """In the order of the combination's weights; those without weight are left out."""
    combination: Combination
    classes: Sequence[str]
    """Names, in the order of the probabilities."""
    image_input: ImageInput
    provenance: Provenance
    report: ReportRecord | None = None
    decision: Decision = MOST_PROBABLE
    cascade: Cascade | None = None
    """Of all members, each of which must have weight."""
    prefers_cascade: bool = False
    """Whether the bundle runs as a cascade unless told otherwise."""
    conformal: Conformal | None = None
    rejection: Rejection | None = None


def write_bundle(folder: Path, contents: BundleContents, *, overwrite: bool = False) -> Manifest:
    """Write a bundle, and publish it only after it was loaded again and passed its self-test.

    Args:
        folder: The bundle's name; absent or empty, or an older bundle if `overwrite`.
        contents: The ensemble and what is known of it.
        overwrite: Replace an older bundle in one step.

    Returns:
        What the manifest says.

    Raises:
        BundleError: The folder is in use, cannot be written, or the parts do not fit together.
    """
    refuse_to_replace(folder, overwrite=overwrite)
    contents = _without_idle_members(contents)
    task = _checked_task(contents)
    try:
        with new_folder(folder) as hidden:
            (hidden / "members").mkdir()
            records = _write_members(hidden, contents, task)
            networks = tuple(load_network(hidden, record, task) for record in records)
            predictor = Predictor(
                networks=networks,
                combination=contents.combination,
                image_input=contents.image_input,
            )
            self_test = write_self_test(hidden, predictor, contents.cascade)
            manifest = _describe(contents, records, self_test)
            write_file(hidden / "manifest.json", manifest_to_text(manifest).encode())
            write_file(hidden / "README.md", render_model_card(manifest).encode())
            load_bundle(hidden)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error}.") from error
    return manifest


def summarize_report(report: Report, *, exported: Method) -> ReportRecord:
    """Take from a study's report what a bundle shall say about itself.

    Args:
        report: The table on the test images.
        exported: The method that the bundle holds; its row comes first.

    Returns:
        One line for each method, the verdict and the numbers behind it.

    Raises:
        BundleError: The report has no row for this method.
    """
    rows = sorted(report.rows, key=lambda row: row.method != exported)
    if not rows or rows[0].method != exported:
        raise BundleError(f"the report has no row for {exported}.")
    cascade = report.cascade if report.choice == exported else None
    return ReportRecord(
        role="test",
        n_images=report.comparison.n_images,
        n_openings=report.n_test_openings,
        figures=tuple(
            _line(row.method, row.n_members * (report.n_folds or 1), row.test) for row in rows
        ),
        verdict=report.sentence,
        comparison=report.comparison.figures(),
        cascade=None
        if cascade is None
        else CascadeFigures(
            accuracy_lost=cascade.accuracy_lost,
            cost_share=cascade.cost_share,
            mean_members=cascade.mean_members,
        ),
    )


def summarize_distillation(report: DistillationReport) -> ReportRecord:
    """Take from the report of a distillation what the bundle of the student shall say.

    Returns:
        One line for student, ensemble and single model; verdict and numbers are those of the
        student against the single model, and the share of the ensemble's gain that it keeps.
    """
    numbers: dict[str, Number] = dict(report.comparison.figures())
    kept = {"accuracy": report.retained_accuracy, "log_loss": report.retained_log_loss}
    for name, gain in kept.items():
        if gain is not None:
            numbers[f"retained_{name}"] = gain.share
            numbers[f"retained_{name}_interval"] = (gain.interval.low, gain.interval.high)
    contestants = (report.student, report.ensemble, report.single)
    return ReportRecord(
        role="test",
        n_images=report.comparison.n_images,
        n_openings=report.n_test_openings,
        figures=tuple(_line(each.name, each.n_members, each.test) for each in contestants),
        verdict=f"{report.verdict} {report.retained}",
        comparison=numbers,
    )


def _line(name: str, n_members: int, measured: Measured) -> Figures:
    interval = measured.accuracy_interval
    return Figures(
        name=name,
        n_members=n_members,
        accuracy=measured.accuracy,
        accuracy_interval=(interval.low, interval.high),
        log_loss=measured.log_loss,
        expected_calibration_error=measured.expected_calibration_error,
    )


def refuse_to_replace(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that no bundle may be written to.

    Raises:
        BundleError: It is in use, and not an older bundle that may be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"{folder} is a file; a bundle is a folder.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names:
        return
    if not overwrite:
        raise BundleError(
            f"{folder} is not empty; choose another folder, or replace a bundle by --overwrite."
        )
    if "manifest.json" not in names or names - _NAMES:
        foreign = ", ".join(sorted(names - _NAMES)[:3]) or "no manifest.json"
        raise BundleError(f"{folder} is not overwritten: it is not only a bundle ({foreign}).")


def _without_idle_members(contents: BundleContents) -> BundleContents:
    if len(contents.members) != contents.combination.n_members:
        raise BundleError(
            f"the combination has {contents.combination.n_members} weights "
            f"for {len(contents.members)} members."
        )
    active = active_members(contents.combination)
    members = tuple(contents.members[position] for position in active)
    return replace(contents, members=members, combination=contents.combination.select(active))


def _checked_task(contents: BundleContents) -> Task:
    try:
        check_image_input(contents.image_input)
        return Task(
            image_size=contents.image_input.size,
            channels=contents.image_input.channels,
            n_classes=len(contents.classes),
        )
    except (SpaceError, ValueError) as error:
        raise BundleError(f"no bundle can be written: {error}") from error


def _write_members(folder: Path, contents: BundleContents, task: Task) -> tuple[MemberRecord, ...]:
    try:
        return tuple(
            write_member(folder, member, task, position=position)
            for position, member in enumerate(contents.members)
        )
    except ValidationError as error:
        raise BundleError(f"no bundle can be written: {first_problem(error)}.") from error


def _describe(
    contents: BundleContents, members: tuple[MemberRecord, ...], self_test: SelfTestRecord
) -> Manifest:
    try:
        return Manifest(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            created=datetime.now(UTC).replace(microsecond=0),
            tool_version=metadata.version("concertino"),
            classes=tuple(contents.classes),
            image_input=contents.image_input,
            members=members,
            combination=contents.combination,
            self_test=self_test,
            provenance=contents.provenance,
            report=contents.report,
            decision=contents.decision,
            cascade=contents.cascade,
            prefers_cascade=contents.prefers_cascade,
            conformal=contents.conformal,
            rejection=contents.rejection,
        )
    except ValidationError as error:
        raise BundleError(f"no bundle can be written: {first_problem(error)}.") from error

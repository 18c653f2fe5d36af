"""The README of a bundle: what a reader must know before trusting it.

Its YAML head is the one that the Hugging Face hub reads; nothing but the manifest goes into it.
"""

import json
from collections.abc import Iterable, Sequence

from ensembles.manifest import Figures, Manifest, ReportRecord

_MAX_NAMED_CLASSES = 50


def render_model_card(manifest: Manifest) -> str:
    """Return the model card as Markdown with a YAML head."""
    sections = [
        _head(manifest),
        _summary(manifest),
        _results(manifest.report),
        _members(manifest),
        _data(manifest),
        _usage(),
        _limits(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(manifest: Manifest) -> str:
    lines = [
        "library_name: concertino",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        "- ensemble" if len(manifest.members) > 1 else "- convolutional-network",
    ]
    if manifest.report is not None and manifest.report.figures:
        lines += _model_index(manifest, manifest.report)
    return "\n".join(["---", *lines, "---"])


def _model_index(manifest: Manifest, report: ReportRecord) -> Iterable[str]:
    figures = report.figures[0]
    dataset = _quoted(manifest.provenance.dataset)
    yield from (
        "model-index:",
        f"- name: {_quoted(manifest.provenance.study)}",
        "  results:",
        "  - task:",
        "      type: image-classification",
        "    dataset:",
        f"      type: {dataset}",
        f"      name: {dataset}",
        f"      split: {_quoted(report.role)}",
        "    metrics:",
    )
    for name in ("accuracy", "log_loss", "expected_calibration_error"):
        yield f"    - type: {name}"
        yield f"      value: {getattr(figures, name):.6g}"


def _summary(manifest: Manifest) -> str:
    image_input, n_members = manifest.image_input, len(manifest.members)
    what = "One network" if n_members == 1 else f"An ensemble of {n_members} networks"
    colors = "grey" if image_input.channels == 1 else "RGB"
    named = ", ".join(_plain(name) for name in manifest.classes[:_MAX_NAMED_CLASSES])
    n_more = len(manifest.classes) - _MAX_NAMED_CLASSES
    return (
        f"# {_plain(manifest.provenance.study)}\n\n"
        f"{what} that sorts {colors} pictures of {image_input.size} x {image_input.size} pixels "
        f"into {len(manifest.classes)} classes: "
        f"{named}{f' and {n_more} more' if n_more > 0 else ''}."
    )


def _results(report: ReportRecord | None) -> str:
    if report is None:
        return "## Results\n\nIt was exported without a report: nothing is known of its quality."
    openings = "once" if report.n_openings == 1 else f"{report.n_openings} times"
    table = _table(
        ["method", "members", "accuracy", "95 % interval", "log-loss", "calibration error"],
        [_figures_row(figures) for figures in report.figures],
    )
    return (
        f"## Results\n\nOn {report.n_images} images of the role `{_plain(report.role)}`, "
        f"which was opened {openings}; the first line is this bundle:\n\n{table}\n\n"
        f"{_plain(report.verdict)}"
    )


def _figures_row(figures: Figures) -> list[str]:
    low, high = figures.accuracy_interval
    return [
        figures.name,
        str(figures.n_members),
        f"{figures.accuracy:.2%}",
        f"{low:.2%} to {high:.2%}",
        f"{figures.log_loss:.4f}",
        f"{figures.expected_calibration_error:.2%}",
    ]


def _members(manifest: Manifest) -> str:
    combination = manifest.combination
    rows = [
        [
            str(member.trial),
            member.architecture.family,
            str(len(member.architecture.stages)),
            f"{member.n_parameters:,}",
            f"{weight:.3f}",
        ]
        for member, weight in zip(manifest.members, combination.weights, strict=True)
    ]
    table = _table(["trial", "family", "stages", "parameters", "weight"], rows)
    return (
        f"## Members\n\nCombined by `{combination.method}` ({combination.space}), "
        f"temperature {combination.temperature:.3f}:\n\n{table}"
    )


def _data(manifest: Manifest) -> str:
    provenance = manifest.provenance
    counts = ", ".join(f"{count} {_plain(role)}" for role, count in provenance.n_images.items())
    return (
        f"## Data\n\nTrained on {_plain(provenance.dataset)}"
        f"{f' ({counts} images)' if counts else ''}, "
        f"fingerprint `{_plain(provenance.dataset_fingerprint)}`."
    )


def _usage() -> str:
    return (
        "## Use\n\n"
        "```\npython -m search predict FOLDER photo.jpg more_photos/\n```\n\n"
        "```python\n"
        "from ensembles.bundle import load_bundle\n\n"
        "bundle = load_bundle('FOLDER')\n"
        "probabilities = bundle.predict(['photo.jpg'])  # one row per picture\n"
        "label = bundle.classes[probabilities[0].argmax()]\n"
        "```"
    )


def _limits(manifest: Manifest) -> str:
    fits = {
        "crop": "cut to their middle square",
        "pad": "padded with black to a square",
        "stretch": "stretched to a square",
    }
    return (
        "## Limits\n\n"
        "- It always answers with one of its classes, also for a picture that shows none.\n"
        "- The figures hold for pictures like those of the study; others may fare worse.\n"
        f"- Pictures are {fits[manifest.image_input.fit]} and scaled to "
        f"{manifest.image_input.size} pixels: finer detail is not seen.\n"
        + (
            "- Its outputs are shares of votes, not probabilities of being right.\n"
            if manifest.combination.space == "vote"
            else ""
        )
        + f"\nWritten by Concertino {_plain(manifest.tool_version)} on "
        f"{manifest.created:%Y-%m-%d}."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *(map(_plain, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, in one line: a name may hold anything."""
    line = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in "\\|<>`*[]#" else sign for sign in line)


def _quoted(text: str) -> str:
    """Return a text as YAML reads it: a JSON string is one."""
    return json.dumps(text, ensure_ascii=False)

"""The README of a bundle: what a reader must know before trusting it.

Its YAML head is the one that the Hugging Face hub reads; nothing but the manifest goes into it.
"""

import json
from collections.abc import Iterable, Sequence

from ensembles.cascade import Cascade
from ensembles.conformal import Conformal, Rejection
from ensembles.manifest import Distillation, Figures, Manifest, MemberRecord, ReportRecord

_MAX_NAMED_CLASSES = 50


def render_model_card(manifest: Manifest) -> str:
    """Return the model card as Markdown with a YAML head."""
    sections = [
        _head(manifest),
        _summary(manifest),
        _results(manifest.report),
        _members(manifest),
        _teacher(manifest.provenance.distilled_from),
        _costs(manifest.members),
        _labels(manifest),
        _sets(manifest.conformal),
        _answers(manifest.rejection),
        _cascade(manifest, manifest.cascade),
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
            member.name,
            member.architecture.family,
            str(len(member.architecture.stages)),
            f"{weight:.3f}",
        ]
        for member, weight in zip(manifest.members, combination.weights, strict=True)
    ]
    table = _table(["member", "family", "stages", "weight"], rows)
    return (
        f"## Members\n\nCombined by `{combination.method}` ({combination.space}), "
        f"temperature {combination.temperature:.3f}:\n\n{table}"
    )


def _teacher(distillation: Distillation | None) -> str:
    if distillation is None:
        return ""
    names = ", ".join(map(_plain, distillation.members))
    return (
        "## Distilled\n\nThis network learned from an ensemble of the same study, which is not in "
        f"the bundle: `{_plain(distillation.method)}` of {names}. Of the loss, "
        f"{100 * distillation.share:.4g} % was the distance to what the ensemble says of the "
        f"varied images, at a temperature of {distillation.temperature:.4g}; the labels decided "
        f"the rest. The recipe is that of {_plain(distillation.recipe)}."
    )


def _costs(members: Sequence[MemberRecord]) -> str:
    costs = [member.cost for member in members if member.cost is not None]
    rows = [
        [
            member.name,
            *(
                _milliseconds(member.cost.milliseconds_1, member.cost.milliseconds_32)
                if member.cost
                else ("-", "-")
            ),
            f"{member.n_parameters:,}",
            f"{member.n_bytes / 1e6:.2f}",
        ]
        for member in members
    ]
    if len(members) > 1:
        sums = [sum(cost.milliseconds_1 for cost in costs)]
        sums.append(sum(cost.milliseconds_32 for cost in costs))
        rows.append(
            [
                "all",
                *(_milliseconds(*sums) if len(costs) == len(members) else ("-", "-")),
                f"{sum(member.n_parameters for member in members):,}",
                f"{sum(member.n_bytes for member in members) / 1e6:.2f}",
            ]
        )
    table = _table(["member", "ms for 1 image", "ms for 32 images", "parameters", "MB"], rows)
    note = (
        "The times are medians on the CPU of the machine that exported the bundle, in one "
        "thread, without decoding: they tell how members compare, not how fast your machine is."
        if costs
        else "The times were not measured."
    )
    return f"## Cost\n\n{table}\n\n{note}"


def _milliseconds(*times: float) -> tuple[str, ...]:
    return tuple(f"{time:.3g}" if time < 100 else f"{time:.0f}" for time in times)


def _labels(manifest: Manifest) -> str:
    if manifest.decision.rule == "most_probable":
        return "## Labels\n\nThe label of a picture is its most probable class."
    shares = sorted(manifest.decision.priors)
    return (
        "## Labels\n\nThe label of a picture is the class whose probability is highest in "
        "relation to its share of the images that the ensemble was fitted on "
        f"({shares[0]:.2%} for the rarest class, {shares[-1]:.2%} for the most frequent), which "
        "need not be the most probable class: so every class counts the same, however rare it "
        "is. The probabilities are as they would be without this rule, and the accuracy above "
        "is that of the most probable class."
    )


def _sets(conformal: Conformal | None) -> str:
    if conformal is None:
        return ""
    return (
        "## Sets of classes\n\n`predict --sets` tells which classes a picture may have. For at "
        f"least {100 * (1 - conformal.alpha):.4g}% of all pictures like those of the study, the "
        "true class is in the set; that holds on average, not for each class. A set of "
        "several classes says that the model cannot tell them apart. "
        f"A class is in the set if its probability is at least {conformal.threshold:.4g}, and "
        "the most probable one always is; the threshold was fitted on "
        f"{_images(conformal.n_images)}."
    )


def _answers(rejection: Rejection | None) -> str:
    if rejection is None:
        return ""
    return (
        "## Pictures without an answer\n\n`predict --reject` gives no label where the largest "
        f"probability is below {rejection.threshold:.4g}. Of the labels that are given for "
        f"pictures like those of the study, at least {rejection.target_accuracy:.2%} are right, "
        "by a test that errs in 5 % of all fits. Of the "
        f"{_images(rejection.n_images)} that it was fitted on, {rejection.coverage:.2%} are "
        "answered."
    )


def _cascade(manifest: Manifest, cascade: Cascade | None) -> str:
    if cascade is None:
        return ""
    names = [manifest.members[position].name for position in cascade.order]
    rows = [
        [
            str(stage.n_members),
            names[stage.n_members - 1],
            f"at least {stage.threshold:.4g}" if stage.threshold else "any",
        ]
        for stage in cascade.stages
    ]
    table = _table(["members run", "the last of them", "stops at a probability"], rows)
    when = "Unless told otherwise" if manifest.prefers_cascade else "With `predict --cascade`"
    kept = manifest.report.cascade if manifest.report else None
    told = kept and (
        f" On the images of the results, a picture took {kept.mean_members:.2f} members on "
        f"average and {kept.cost_share:.1%} of the cost, and accuracy was "
        f"{100 * abs(kept.accuracy_lost):.2f} points "
        f"{'higher' if kept.accuracy_lost < 0 else 'lower'}."
    )
    return (
        f"## Cascade\n\n{when}, the members run one after another, in the order "
        f"{', '.join(map(_plain, names))}, and a picture goes no further when its largest "
        f"probability is high enough:\n\n{table}\n\n"
        "The hardest pictures still take all members. Nearly all of the accuracy is kept, the "
        "probabilities are less exact, and neither sets nor refusals are promised for it."
        f"{told or ''}"
    )


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


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
        "for each in bundle.predict_each(['photo.jpg']):\n"
        "    print(each.label or each.problem)\n"
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

"""Why an ensemble is what it is, in a few lines: for the terminal and for the dashboard's note."""

from collections.abc import Sequence
from dataclasses import dataclass

from ensembles.diagnostics import Explanation
from ensembles.reliability import Reliability, ReliabilityBin
from ensembles.report import CascadeFigures

N_GROUPS = 5
"""Ranges of confidence that are told; the figure in the dashboard shows all bins."""
_SMALLEST_POINTS = 0.005
"""Differences below it are written as 0.00."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A table as words: its headings, and as many cells in each row."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def member_cells(explanation: Explanation) -> Cells:
    """Return one row for each member: its weight, its own accuracy, what is lost without it."""
    return Cells(
        headings=("why these members", "weight", "alone", "lost without it", "only it is right"),
        rows=tuple(
            (
                f"trial {member.name}",
                f"{member.weight:.2f}",
                f"{100 * member.accuracy:.2f} %",
                _lost(member.accuracy_added, member.log_loss_added),
                _images(len(member.only_right)),
            )
            for member in explanation.members
        ),
    )


def diversity_line(explanation: Explanation) -> str:
    """Say of how many really different members the ensemble is, and on which images."""
    by_weight, by_errors = explanation.effective_by_weight, explanation.effective_by_errors
    fitted = "ens images, which they were fitted on: that flatters"
    return (
        f"{len(explanation.members)} members, worth {by_weight:.1f} by their weights and "
        f"{by_errors:.1f} by errors that they do not share; one of them or more is right on "
        f"{_percent(explanation.share_any_right)} % of {explanation.n_images:,} "
        f"{'test images' if explanation.is_fresh else fitted}"
    )


def calibration_line(before: Reliability, after: Reliability) -> str:
    """Say how far confidence misses accuracy, before and after the temperature."""
    interval, chance = after.interval, after.by_chance.high
    found = "more" if after.is_visibly_off else "no more"
    return (
        f"calibration error {_percent(before.expected_calibration_error)} % -> "
        f"{_percent(after.expected_calibration_error)} % by the temperature "
        f"(95 % interval {_percent(interval.low)} to {_percent(interval.high)}; {found} than the "
        f"{_percent(chance)} % that chance alone shows on {after.n_images:,} images)"
    )


def reliability_cells(before: Reliability, after: Reliability) -> Cells:
    """Return how often predictions of each range of confidence are right, before and after."""
    groups = list(zip(_grouped(before.bins), _grouped(after.bins), strict=True))
    told = [pair for pair in groups if any(bin_.n_images for group in pair for bin_ in group)]
    ranges = [f"{_percent(group[0].low, 0)}-{_percent(group[-1].high, 0)} %" for group, _ in told]
    rows = [
        (name, *(_right(pair[which]) for pair in told))
        for which, name in enumerate(("right before", "right after"))
    ]
    return Cells(headings=("confidence", *ranges), rows=tuple(rows))


def cascade_line(figures: CascadeFigures) -> str:
    """Say what running the members until they are sure would save and lose."""
    points = -100 * figures.accuracy_lost
    same = abs(points) < _SMALLEST_POINTS
    change = "unchanged" if same else f"{points:+.2f} points"
    return (
        f"as a cascade {100 * figures.cost_share:.0f} % of the cost "
        f"({figures.mean_members:.1f} members an image), accuracy "
        f"{100 * figures.accuracy:.2f} % ({change})"
    )


def _lost(accuracy: float | None, log_loss: float | None) -> str:
    if accuracy is None or log_loss is None:
        return "-"
    return f"{100 * accuracy:+.2f} points, {log_loss:+.4f} nats"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _percent(share: float, n_decimals: int = 1) -> str:
    return f"{100 * share:.{n_decimals}f}"


def _grouped(bins: Sequence[ReliabilityBin]) -> list[Sequence[ReliabilityBin]]:
    size = -(-len(bins) // N_GROUPS)
    return [bins[first : first + size] for first in range(0, len(bins), size)]


def _right(group: Sequence[ReliabilityBin]) -> str:
    n_images = sum(bin_.n_images for bin_ in group)
    n_right = sum(bin_.n_images * (bin_.accuracy or 0.0) for bin_ in group)
    return f"{100 * n_right / n_images:.0f} % of {n_images:,}" if n_images else "-"

"""Why an ensemble is what it is, in a few lines: for the terminal and for the dashboard's note."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ensembles.comparison import Comparison, Interval
from ensembles.diagnostics import Explanation
from ensembles.latency import Cost
from ensembles.pareto import Front
from ensembles.reliability import Reliability, ReliabilityBin
from ensembles.report import CascadeFigures, Figures, Report, Row
from search.candidate_names import candidate_title

TEST_HEADINGS = (
    "on the test role",
    "accuracy",
    "95 % interval",
    "log-loss",
    "ECE",
    "members",
    "cost",
)
N_GROUPS = 5
"""Ranges of confidence that are told; the figure in the dashboard shows all bins."""
_SMALLEST_POINTS = 0.005
"""Differences below it are written as 0.00."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A table as words: its headings, and as many cells in each row."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table_cells(report: Report) -> Cells:
    """Return one row for each ensemble; the first cell of each is its method."""
    return Cells(
        headings=TEST_HEADINGS,
        rows=tuple(_table_row(row, report.n_folds) for row in report.rows),
    )


def asked_cells(report: Report) -> Cells | None:
    """Return the metric that decides, if it is not accuracy, and what was asked for besides.

    Returns:
        One row for each ensemble, or None if there is neither.
    """
    named = report.comparison.named
    asked = tuple(report.rows[0].test.requested) if report.rows else ()
    if not named and not asked:
        return None
    headings = (*((named.metric,) if named else ()), *asked)
    return Cells(
        headings=("on the test role", *(heading.replace("_", " ") for heading in headings)),
        rows=tuple(
            (
                row.method,
                *((f"{100 * getattr(row.test, named.metric):.2f} %",) if named else ()),
                *(_value(row.test.requested.get(name)) for name in asked),
            )
            for row in report.rows
        ),
    )


def _table_row(row: Row, n_folds: int | None) -> tuple[str, ...]:
    return (
        row.method,
        *figure_cells(row.test, is_calibrated=row.is_calibrated),
        f"{row.n_members} x {n_folds}" if n_folds else str(row.n_members),
        f"{row.cost:.1f} x",
    )


def figure_cells(figures: Figures, *, is_calibrated: bool = True) -> tuple[str, ...]:
    """Return the cells of accuracy, its interval, log-loss and calibration error."""
    return (
        f"{100 * figures.accuracy:.2f} %",
        _interval(figures.accuracy_interval),
        f"{figures.log_loss:.4f}" if is_calibrated else "-",
        f"{100 * figures.expected_calibration_error:.1f} %" if is_calibrated else "-",
    )


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def choice_line(report: Report) -> str:
    """Say who made the choice, and what on."""
    asked = report.is_asked_for
    if report.n_folds is None:
        return "asked for with --method" if asked else "the choice, made on the ens role"
    n_images = report.chosen_row.fitted_on.n_images
    made = "asked for with --method, fitted" if asked else "the choice, made"
    return (
        f"{made} on {n_images:,} images of train, stop and ens, each predicted by a "
        f"network that did not learn from it; every member, the single model too, is the mean of "
        f"{report.n_folds} such networks"
    )


def openings_line(report: Report) -> str:
    """Say how often the test role was opened, and where that makes the verdict doubtful."""
    n_openings = report.n_test_openings
    times = "once" if n_openings == 1 else f"{n_openings} times"
    opened = f"the test role has been opened {times} so far"
    if report.is_asked_for and n_openings > 1:
        return (
            f"{opened}, so whoever asked may have known its figures, and the verdict may flatter"
        )
    return opened


def seeds_line(report: Report, against: Comparison) -> str:
    """Say whether the choice is better than its rival of one recipe."""
    seeds = next(row for row in report.rows if row.method == "seeds")
    interval = against.log_loss_interval
    return (
        f"Against {seeds.n_members} trainings of the best recipe, averaged (seeds, "
        f"{seeds.cost:.1f} x), {report.choice} is {against.verdict}: {against.in_points()}; "
        f"log-loss {against.log_loss_difference:+.3f} nats, 95 % interval "
        f"{interval.low:+.3f} to {interval.high:+.3f}."
    )


def member_cells(explanation: Explanation, costs: Mapping[str, Cost] | None = None) -> Cells:
    """Return one row for each member: its weight, its own accuracy, what is lost without it.

    Args:
        explanation: Of the chosen ensemble.
        costs: By the names of the members; with them comes a column of milliseconds.
    """
    headings = ("member", "weight", "alone", "lost without it", "only it right")
    rows = [
        (
            candidate_title(member.name),
            f"{member.weight:.2f}",
            f"{100 * member.accuracy:.2f} %",
            _lost(member.accuracy_added, member.log_loss_added),
            _images(len(member.only_right)),
        )
        for member in explanation.members
    ]
    if not costs:
        return Cells(headings=headings, rows=tuple(rows))
    times = [f"{costs[member.name].milliseconds_1:.2f} ms" for member in explanation.members]
    return Cells(
        headings=(*headings, "an image"),
        rows=tuple((*row, time) for row, time in zip(rows, times, strict=True)),
    )


def diversity_line(explanation: Explanation) -> str:
    """Say of how many really different members the ensemble is, and on which images."""
    by_weight, by_errors = explanation.effective_by_weight, explanation.effective_by_errors
    fitted = "ens images, which they were fitted on: that flatters"
    return (
        f"{len(explanation.members)} members count as {by_weight:.1f} by their weights, as "
        f"{by_errors:.1f} by errors that they do not share; one of them or more is right on "
        f"{_percent(explanation.share_any_right)} % of {explanation.n_images:,} "
        f"{'test images' if explanation.is_fresh else fitted}"
    )


def calibration_line(before: Reliability, after: Reliability) -> str:
    """Say how far confidence misses accuracy, before and after the temperature."""
    chance = after.by_chance.high
    found = "more" if after.is_visibly_off else "no more"
    return (
        f"calibration error {_percent(before.expected_calibration_error)} % -> "
        f"{_percent(after.expected_calibration_error)} % by the temperature "
        f"(95 % interval {_interval(after.interval)}; {found} than the "
        f"{_percent(chance)} % that chance alone shows on {after.n_images:,} images)"
    )


def reliability_cells(before: Reliability, after: Reliability) -> Cells:
    """Return how often predictions of each range of confidence are right, before and after."""
    groups = list(zip(_grouped(before.bins), _grouped(after.bins), strict=True))
    told = [pair for pair in groups if any(bin_.n_images for group in pair for bin_ in group)]
    # Ranges below each other: beside each other, 10,000 images make them wider than a terminal.
    rows = [
        (
            f"{_percent(group[0].low, 0)}-{_percent(group[-1].high, 0)} %",
            *(_right(each) for each in (group, later)),
        )
        for group, later in told
    ]
    return Cells(headings=("confidence", "right before", "right after"), rows=tuple(rows))


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


def front_cells(front: Front) -> Cells:
    """Return one row for each ensemble that no cheaper one equals."""
    resources = list(front.points[0].totals) if front.points else []
    return Cells(
        headings=("at a cost of", "members", "accuracy", "95 % interval", "log-loss", *resources),
        rows=tuple(
            (
                f"{point.cost:.1f} x",
                str(len(point.ensemble.names)),
                f"{100 * point.accuracy:.2f} %",
                _interval(point.accuracy_interval),
                f"{point.log_loss:.4f}",
                *(_amount(name, point.totals[name]) for name in resources),
            )
            for point in front.points
        ),
    )


def _amount(resource: str, total: float) -> str:
    return f"{total / 1e6:.1f} MB" if resource == "bytes" else f"{total:,.4g}"


def _lost(accuracy: float | None, log_loss: float | None) -> str:
    if accuracy is None or log_loss is None:
        return "-"
    return f"{100 * accuracy:+.2f} points, {log_loss:+.4f} nats"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _interval(interval: Interval) -> str:
    return f"{_percent(interval.low)} to {_percent(interval.high)}"


def _percent(share: float, n_decimals: int = 1) -> str:
    return f"{100 * share:.{n_decimals}f}"


def _grouped(bins: Sequence[ReliabilityBin]) -> list[Sequence[ReliabilityBin]]:
    size = -(-len(bins) // N_GROUPS)
    return [bins[first : first + size] for first in range(0, len(bins), size)]


def _right(group: Sequence[ReliabilityBin]) -> str:
    n_images = sum(bin_.n_images for bin_ in group)
    n_right = sum(bin_.n_images * (bin_.accuracy or 0.0) for bin_ in group)
    return f"{100 * n_right / n_images:.0f} % of {n_images:,}" if n_images else "-"

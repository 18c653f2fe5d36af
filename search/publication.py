"""The newest ensemble on the page of its study: a note with table and verdict, figures, a curve.

Everything is stored in the study itself and sent to the browser at each poll; so figures are
small, without Plotly's own template (7 kB each), and replace those of the ensemble before.
"""

import logging
from collections.abc import Iterable, Sequence

import optuna
import plotly.graph_objects as go
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from ensembles.methods import Method
from ensembles.pareto import Front
from ensembles.reliability import ReliabilityBin
from ensembles.report import Report, Row
from search.candidate_names import by_trial, candidate_title
from search.curve_points import CurvePoint
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

logger = logging.getLogger(__name__)

HEADING = "## Ensemble"
_CHOICE, _OTHER = "#f50057", "#4b72b0"
_MAX_MARKERS = 30
_AXIS = {"showgrid": True, "gridcolor": "#ddd", "zeroline": False, "automargin": True}


def publish_ensemble(
    study: optuna.Study, report: Report, worth_exporting: Method, *, front: Front | None = None
) -> None:
    """Put an ensemble on the page of its study, in the place of the one before.

    The ensemble is on the disk already and stands without its page: what goes wrong here is in
    the log with its traceback.

    Args:
        study: The study; what somebody wrote in its note, above our heading, stays.
        report: Table, choice and verdict.
        worth_exporting: The method that the verdict advises to export.
        front: Cheaper and dearer ensembles.
    """
    try:
        own, _, _ = get_note(study).partition(HEADING)
        note = ensemble_note(report, study.study_name, worth_exporting, front=front)
        save_note(study, f"{own.rstrip()}\n\n{note}" if own.strip() else note)
        for name, figure in ensemble_figures(report).items():
            save_plotly_graph_object(study, figure, graph_object_id=name)
    except Exception:
        logger.exception("ensemble: it is built, but the dashboard does not show it")


def publish_curve(study: optuna.Study, points: Sequence[CurvePoint]) -> None:
    """Put the curve of the ensemble on the page of its study, in the place of the one before."""
    figure = curve_figure(points)
    save_plotly_graph_object(study, figure, graph_object_id="ensemble-curve")


def curve_figure(points: Sequence[CurvePoint]) -> go.Figure:
    """Draw log-loss and accuracy of ensemble and best trial over the finished trials."""
    x = [point.n_finished for point in points]
    lines = [(_CHOICE, "ensemble", [point.ensemble for point in points])]
    lines += [(_OTHER, "best trial", [point.best for point in points])]
    title = "Ensemble and best trial, ens role"
    figure = go.Figure(layout=_layout_of_lines(title, "finished trials"))
    for color, name, scores in lines:
        for axis, values in (
            ("y", [score.log_loss for score in scores]),
            ("y2", [100 * score.accuracy for score in scores]),
        ):
            figure.add_scatter(
                x=x,
                y=_rounded(values),
                yaxis=axis,
                name=name,
                mode="lines+markers" if len(x) <= _MAX_MARKERS else "lines",
                line={"color": color},
                showlegend=axis == "y",
            )
    return figure.update_layout(
        xaxis={"anchor": "y2"},
        yaxis={"title": {"text": "log-loss"}, "domain": [0.54, 1.0]},
        yaxis2={**_AXIS, "title": {"text": "accuracy, %"}, "domain": [0.0, 0.46]},
    )


def ensemble_note(
    report: Report, study_name: str, worth_exporting: Method, *, front: Front | None = None
) -> str:
    """Return table and verdict as Markdown."""
    made = (
        f"Bold: {choice_line(report)}; {openings_line(report)}. "
        f"The best single model is {candidate_title(report.single)}."
    )
    advice = f"`python -m search export {study_name} --out model` ({worth_exporting})"
    lines = [
        HEADING,
        "",
        f"**{_escaped(report.sentence)}**",
        "",
        *_against_seeds(report),
        *_markdown_table(table_cells(report), bold=report.choice),
        "",
        *_asked_table(report),
        "",
        *(f"- left out: {_escaped(reason)}" for reason in report.refused.values()),
        "",
        made,
        "",
        *explanation_note(report, front),
        "",
        f"To export what the verdict advises: {advice}.",
        "",
        "`python -m search ensemble` writes this anew from its heading on; a text above it stays.",
    ]
    return "\n".join(lines)


def explanation_note(report: Report, front: Front | None = None) -> list[str]:
    """Return, as lines of Markdown, what `print_explanation` prints."""
    lines: list[str] = []
    explanation = report.explanation
    if explanation and len(explanation.members) > 1:
        lines += [*_markdown_table(member_cells(explanation)), ""]
        lines += [_escaped(diversity_line(explanation)), ""]
    if report.reliability_before and report.reliability:
        both = report.reliability_before, report.reliability
        lines += [*_markdown_table(reliability_cells(*both)), ""]
        lines += [f"- {_escaped(calibration_line(*both))}"]
    if report.cascade:
        lines += [f"- {_escaped(cascade_line(report.cascade))}"]
    if report.overtuning:
        lines += [f"- {_escaped(report.overtuning.sentence())}"]
    if front:
        lines += ["", *_markdown_table(front_cells(front))]
    return lines


def _against_seeds(report: Report) -> list[str]:
    against = report.against_seeds
    return [_escaped(seeds_line(report, against)), ""] if against else []


def _reliability(report: Report) -> go.Figure:
    """Draw how often the choice is right over how sure it is, before its temperature and after."""
    before, after = report.reliability_before, report.reliability
    if not before or not after:
        # Takes the place of the figure of the ensemble before, which cannot be deleted.
        return go.Figure(layout=_layout("Reliability: votes are no probabilities"))
    title = "Reliability on the test role"
    figure = go.Figure(layout=_layout_of_lines(title, "confidence"))
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#888"}, showlegend=False
    )
    for name, color, each in (("before", _OTHER, before), ("after", _CHOICE, after)):
        bins = [bin_ for bin_ in each.bins if bin_.n_images]
        figure.add_scatter(
            x=_rounded(bin_.confidence or 0.0 for bin_ in bins),
            y=_rounded(bin_.accuracy or 0.0 for bin_ in bins),
            text=[f"{bin_.n_images} images" for bin_ in bins],
            name=name,
            mode="lines+markers",
            line={"color": color},
            error_y=_error_bars(bins) if each is after else None,
        )
    return figure.update_layout(
        xaxis={"range": [0, 1.02]}, yaxis={"title": {"text": "share right"}, "range": [0, 1.02]}
    )


def _error_bars(bins: Sequence[ReliabilityBin]) -> dict[str, object]:
    told = [
        (bin_.accuracy, bin_.accuracy_interval)
        for bin_ in bins
        if bin_.accuracy is not None and bin_.accuracy_interval
    ]
    return {
        "array": _rounded(interval.high - accuracy for accuracy, interval in told),
        "arrayminus": _rounded(accuracy - interval.low for accuracy, interval in told),
        "color": "#999",
        "thickness": 1,
    }


def _asked_table(report: Report) -> list[str]:
    cells = asked_cells(report)
    return _markdown_table(cells, bold=report.choice) if cells else []


def _markdown_table(cells: Cells, *, bold: str = "") -> list[str]:
    """Return the lines of a table; the row whose first cell is `bold` stands out."""
    escaped = [
        [f"**{_escaped(cell)}**" if row[0] == bold else _escaped(cell) for cell in row]
        for row in (cells.headings, *cells.rows)
    ]
    rows = [f"| {' | '.join(row)} |" for row in escaped]
    return [rows[0], f"| --- {'| ---: ' * (len(cells.headings) - 1)}|", *rows[1:]]


def ensemble_figures(report: Report) -> dict[str, go.Figure]:
    """Return the figures by the names under which they are stored."""
    calibrated = [row for row in report.rows if row.is_calibrated]
    return {
        "ensemble-accuracy": _accuracy(report),
        "ensemble-log-loss": _log_loss(calibrated, report.choice),
        "ensemble-members": _members(report.rows),
        "ensemble-reliability": _reliability(report),
    }


def _accuracy(report: Report) -> go.Figure:
    """Draw the accuracy of each method with its interval, and a line at the best single model."""
    rows = report.rows
    shares = [100 * row.test.accuracy for row in rows]
    intervals = [row.test.accuracy_interval for row in rows]
    figure = go.Figure(
        go.Scatter(
            x=_rounded(shares),
            y=[row.method for row in rows],
            mode="markers",
            marker={"size": 10, "color": _colors(rows, report.choice)},
            error_x={
                "array": _rounded(
                    100 * each.high - share for each, share in zip(intervals, shares, strict=True)
                ),
                "arrayminus": _rounded(
                    share - 100 * each.low for each, share in zip(intervals, shares, strict=True)
                ),
                "color": "#999",
                "thickness": 1.5,
            },
        ),
        _layout_by_method("Accuracy on the test role, %"),
    )
    single = 100 * report.comparison.single_accuracy
    figure.add_vline(x=round(single, 3), line={"dash": "dot", "color": "#888", "width": 1})
    return figure


def _log_loss(rows: Sequence[Row], choice: Method) -> go.Figure:
    values = [row.test.log_loss for row in rows]
    return go.Figure(
        go.Bar(
            x=_rounded(values),
            y=[row.method for row in rows],
            orientation="h",
            marker={"color": _colors(rows, choice)},
            text=[f"{value:.4f}" for value in values],
        ),
        _layout_by_method("Log-loss on the test role"),
    )


def _members(rows: Sequence[Row]) -> go.Figure:
    """Draw the weight of each member in each method."""
    names = sorted({member.name for row in rows for member in row.members}, key=by_trial)
    weights = [{member.name: member.weight for member in row.members} for row in rows]
    shares = [[each.get(name) for name in names] for each in weights]
    figure = go.Figure(
        go.Heatmap(
            x=[candidate_title(name) for name in names],
            y=[row.method for row in rows],
            z=[[None if share is None else round(share, 3) for share in row] for row in shares],
            texttemplate="%{z:.2f}",
            colorscale=[[0, "#eef2f9"], [1, _OTHER]],
            zmin=0,
            showscale=False,
            xgap=2,
            ygap=2,
        ),
        _layout_by_method("Weights of the members"),
    )
    return figure.update_xaxes(type="category", showgrid=False).update_yaxes(showgrid=False)


def _layout(title: str) -> go.Layout:
    return go.Layout(
        template="none",
        # Centered, it would lie under the buttons of the plot.
        title={"text": title, "font": {"size": 16}, "x": 0.01},
        xaxis=_AXIS,
        yaxis=_AXIS,
        margin={"l": 20, "r": 20, "t": 50, "b": 30},
        showlegend=False,
    )


def _layout_by_method(title: str) -> go.Layout:
    return _layout(title).update(yaxis={"autorange": "reversed", "type": "category"})


def _layout_of_lines(title: str, x_title: str) -> go.Layout:
    """Return a layout with a legend between the title and the plot."""
    return _layout(title).update(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        xaxis={"title": {"text": x_title}},
        margin={"t": 70},
    )


def _colors(rows: Sequence[Row], choice: Method) -> list[str]:
    return [_CHOICE if row.method == choice else _OTHER for row in rows]


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _escaped(text: str) -> str:
    return text.replace("_", "\\_").replace("*", "\\*").replace("|", "\\|")

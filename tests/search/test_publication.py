import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from curves import POINT
from explanations import make_front, make_report
from optuna.study import StudyDirection
from optuna_dashboard import get_note, save_note

from ensembles.builder import build_all
from ensembles.pool import Pool
from ensembles.report import Report, evaluate_all
from search.curve_points import MAX_POINTS
from search.paths import StudyPaths
from search.publication import (
    HEADING,
    curve_figure,
    ensemble_figures,
    ensemble_note,
    explanation_note,
    publish_curve,
    publish_ensemble,
)
from search.storage import create_study, open_study


def make_pool(seed: int) -> Pool:
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=120)
    logits = generator.normal(size=(4, 120, 3))
    logits[:, np.arange(120), labels] += 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return Pool.from_arrays(probabilities=shares, labels=labels, names=["2", "10", "3", "7"])


@pytest.fixture(scope="module")
def report() -> Report:
    fit_pool = make_pool(0)
    return evaluate_all(
        build_all(fit_pool, max_members=3),
        choice="bagged_greedy",
        fit_pool=fit_pool,
        test_pool=make_pool(1),
        refused={"stack": "stacking needs more images | than there are."},
        n_test_openings=2,
    )


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    paths = StudyPaths(tmp_path / "tiny")
    paths.folder.mkdir()
    create_study(paths, StudyDirection.MINIMIZE, metric="log_loss", attributes={}, first_trials=())
    return open_study(paths)


def figure_parts(study: optuna.Study) -> dict[str, str]:
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {key: text for key, text in attributes.items() if key.startswith("dashboard:plot_data")}


def test_the_note_has_a_row_for_each_method_and_the_choice_in_bold(report: Report) -> None:
    lines = ensemble_note(report, "tiny", "single").splitlines()

    first = next(place for place, line in enumerate(lines) if line.startswith("|"))
    table = lines[first : lines.index("", first)]
    assert len(table) == 2 + len(report.rows)
    assert len({line.count("|") for line in table}) == 1
    assert [line.startswith("| **bagged\\_greedy** | **") for line in table].count(True) == 1


def test_the_note_holds_verdict_refusals_and_the_openings_of_the_test_role(report: Report) -> None:
    note = ensemble_note(report, "tiny", "single")

    assert report.sentence.replace("_", "\\_") in note
    assert "- left out: stacking needs more images \\| than there are." in note
    assert "opened 2 times" in note
    assert "`python -m search export tiny --out model` (single)" in note


def test_a_new_ensemble_takes_the_place_of_the_one_before(
    study: optuna.Study, report: Report
) -> None:
    publish_ensemble(study, report, "single")
    first = figure_parts(study)

    publish_ensemble(study, report, "single")

    assert get_note(study).count(HEADING) == 1
    assert figure_parts(study) == first
    assert len({key.split(":")[2] for key in first}) == 4


def test_what_somebody_wrote_above_the_heading_stays(study: optuna.Study, report: Report) -> None:
    save_note(study, "Photos of **Tuesday**.\n")

    publish_ensemble(study, report, "single")
    publish_ensemble(study, report, "single")

    assert get_note(study).startswith(f"Photos of **Tuesday**.\n\n{HEADING}\n")


def test_figures_are_small_since_each_poll_sends_them(report: Report) -> None:
    sizes = [len(figure.to_json()) for figure in ensemble_figures(report).values()]

    assert max(sizes) < 5_000


def test_the_accuracies_drawn_are_those_of_the_report_with_their_intervals(
    report: Report,
) -> None:
    drawn = ensemble_figures(report)["ensemble-accuracy"].data[0]

    row = report.rows[0]
    assert drawn.y[0] == row.method
    assert drawn.x[0] == pytest.approx(100 * row.test.accuracy, abs=1e-3)
    assert drawn.x[0] + drawn.error_x.array[0] == pytest.approx(
        100 * row.test.accuracy_interval.high, abs=1e-3
    )


def test_votes_have_no_log_loss_to_draw(report: Report) -> None:
    drawn = ensemble_figures(report)["ensemble-log-loss"].data[0]

    assert "vote" not in drawn.y
    assert len(drawn.y) == sum(row.is_calibrated for row in report.rows) < len(report.rows)


def test_members_stand_in_the_order_of_their_trials(report: Report) -> None:
    drawn = ensemble_figures(report)["ensemble-members"].data[0]

    numbers = [int(name.removeprefix("trial ")) for name in drawn.x]
    assert numbers == sorted(numbers)
    for method, weights in zip(drawn.y, drawn.z, strict=True):
        row = next(row for row in report.rows if row.method == method)
        assert sum(weight is not None for weight in weights) == row.n_members


def test_the_curve_has_two_lines_of_log_loss_and_two_of_accuracy() -> None:
    figure = curve_figure([POINT, replace(POINT, n_finished=20)])

    drawn = {(line.name, line.yaxis): tuple(line.y) for line in figure.data}
    assert drawn == {
        ("ensemble", "y"): (0.612, 0.612),
        ("best trial", "y"): (0.655, 0.655),
        ("ensemble", "y2"): (78.1, 78.1),
        ("best trial", "y2"): (76.1, 76.1),
    }
    assert all(tuple(line.x) == (10, 20) for line in figure.data)


def test_a_curve_takes_the_place_of_the_one_before_and_is_small(study: optuna.Study) -> None:
    points = [replace(POINT, n_finished=number) for number in range(1, MAX_POINTS + 1)]

    publish_curve(study, points)
    long = figure_parts(study)
    publish_curve(study, points[:1])

    assert sum(map(len, long.values())) < 8_000
    assert sum(map(len, figure_parts(study).values())) < 3_000


def test_an_explanation_becomes_three_tables_and_three_points() -> None:
    lines = explanation_note(make_report(), make_front())

    table = [line for line in lines if line.startswith("|")]
    assert [line.count("|") for line in table] == [6] * 4 + [4] * 4 + [8] * 4
    assert [line.startswith("- ") for line in lines].count(True) == 3


def test_the_note_of_an_ensemble_explains_it(report: Report) -> None:
    lines = ensemble_note(report, "tiny", "single").splitlines()

    assert set(explanation_note(report)) <= set(lines)
    assert any("only it right" in line for line in lines)


def test_nothing_is_noted_of_what_is_not_known(report: Report) -> None:
    unknown = replace(
        report, explanation=None, reliability_before=None, cascade=None, overtuning=None
    )

    assert explanation_note(unknown) == []


def test_the_reliability_drawn_leaves_out_bins_without_images() -> None:
    _, before, after = ensemble_figures(make_report())["ensemble-reliability"].data

    assert tuple(before.x) == (0.45, 0.85, 0.95)
    assert tuple(before.y) == (0.2, 0.6, 1.0)
    assert tuple(after.error_y.array) == (0.5, 0.0)
    assert tuple(after.error_y.arrayminus) == (0.3, 0.8)


def test_of_votes_the_place_of_the_reliability_stays_empty(report: Report) -> None:
    of_votes = replace(report, reliability_before=None, reliability=None)

    assert ensemble_figures(of_votes)["ensemble-reliability"].data == ()


def test_an_ensemble_that_cannot_be_shown_is_still_built(
    study: optuna.Study, report: Report, caplog: pytest.LogCaptureFixture
) -> None:
    optuna.delete_study(study_name=study.study_name, storage=study._storage)

    with caplog.at_level(logging.ERROR):
        publish_ensemble(study, report, "single")

    assert "it is built, but the dashboard does not show it" in caplog.text
    assert "KeyError" in caplog.text

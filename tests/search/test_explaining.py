from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from explanations import AFTER, BEFORE, CASCADE, EXPLANATION, FIRST, make_front

from ensembles.builder import build, build_all
from ensembles.latency import Cost
from ensembles.pool import Pool
from ensembles.reliability import reliability
from ensembles.report import Report, evaluate_all
from search.explaining import (
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


def test_each_member_has_a_row_with_what_is_lost_without_it() -> None:
    assert member_cells(EXPLANATION).rows == (
        ("trial 7", "0.75", "77.20 %", "+0.40 points, +0.0123 nats", "2 images"),
        ("trial 12", "0.25", "77.20 %", "-0.10 points, +0.0123 nats", "1 image"),
    )


def test_a_member_whose_cost_was_measured_has_its_time_told() -> None:
    cost = Cost(milliseconds_1=1.256, milliseconds_32=20.0, n_parameters=10, n_bytes=40)

    cells = member_cells(EXPLANATION, {"7": cost, "12": replace(cost, milliseconds_1=0.5)})

    assert [row[-1] for row in cells.rows] == ["1.26 ms", "0.50 ms"]
    assert len(cells.headings) == len(cells.rows[0])


def test_each_ensemble_of_the_front_has_a_row_with_what_it_needs() -> None:
    cells = front_cells(make_front())

    assert cells.headings[-2:] == ("milliseconds", "bytes")
    assert cells.rows == (
        ("1.0 x", "1", "90.00 %", "88.0 to 91.5", "0.3500", "1.25", "0.4 MB"),
        ("2.5 x", "2", "92.00 %", "88.0 to 91.5", "0.3000", "3.125", "1.2 MB"),
    )


def test_the_only_member_cannot_be_left_out() -> None:
    alone = replace(FIRST, log_loss_added=None, accuracy_added=None)

    [row] = member_cells(replace(EXPLANATION, members=(alone,))).rows

    assert row[3] == "-"


def test_figures_on_the_images_of_the_fit_are_called_flattering() -> None:
    fitted = diversity_line(replace(EXPLANATION, is_fresh=False))

    assert diversity_line(EXPLANATION) == (
        "2 members count as 1.8 by their weights, as 1.3 by errors that they do not share; "
        "one of them or more is right on 85.3 % of 1,000 test images"
    )
    assert fitted.endswith("85.3 % of 1,000 ens images, which they were fitted on: that flatters")


def test_the_calibration_stands_beside_what_chance_shows() -> None:
    assert calibration_line(BEFORE, AFTER) == (
        "calibration error 6.0 % -> 2.1 % by the temperature (95 % interval 0.5 to 3.8; "
        "no more than the 2.9 % that chance alone shows on 500 images)"
    )


def test_an_error_that_chance_does_not_explain_is_said_to_be_more() -> None:
    off = replace(AFTER, expected_calibration_error=0.05)

    assert "; more than the 2.9 % that chance alone shows" in calibration_line(BEFORE, off)


def test_ranges_of_confidence_are_told_together_and_empty_ones_not_at_all() -> None:
    cells = reliability_cells(BEFORE, AFTER)

    # 60 of 100 and 300 of 300 make 360 of 400.
    assert cells.headings == ("confidence", "right before", "right after")
    assert cells.rows == (
        ("40-60 %", "20 % of 100", "40 % of 50"),
        ("80-100 %", "90 % of 400", "90 % of 450"),
    )


def test_all_images_of_real_predictions_are_told() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 3))
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    real = reliability(log_probabilities, generator.integers(3, size=200))

    rows = reliability_cells(real, real).rows

    assert all(before == after for _, before, after in rows)
    assert sum(int(cell.split()[-1]) for _, cell, _ in rows if cell != "-") == 200


@pytest.mark.parametrize(
    ("lost", "words"),
    [(0.001, "(-0.10 points)"), (-0.002, "(+0.20 points)"), (0.0, "(unchanged)")],
)
def test_a_cascade_is_told_with_what_it_saves_and_loses(lost: float, words: str) -> None:
    assert cascade_line(replace(CASCADE, accuracy_lost=lost)) == (
        f"as a cascade 41 % of the cost (2.1 members an image), accuracy 94.30 % {words}"
    )


def make_report(*, folds: Mapping[str, tuple[str, str]] | None = None) -> Report:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=60)
    logits = generator.normal(size=(4, 60, 3))
    logits[:, np.arange(60), labels] += 2
    pool = Pool.from_arrays(logits=logits, labels=labels)
    fitted = pool.select([0, 1])
    ensembles = build_all(fitted)
    if not folds:
        ensembles["seeds"] = build(fitted, method="seeds", max_members=2)
    return evaluate_all(ensembles, choice="soft", fit_pool=fitted, test_pool=pool, folds=folds)


def test_the_choice_beside_seeds_is_told_with_its_difference() -> None:
    report = make_report()
    assert report.against_seeds is not None

    line = seeds_line(report, report.against_seeds)

    assert line.startswith(
        "Against 2 trainings of the best recipe, averaged (seeds, 2.0 x), soft is not "
        "distinguishable: difference "
    )
    assert choice_line(report) == "the choice, made on the ens role"


def test_a_table_of_folds_counts_the_networks_of_each_member() -> None:
    report = make_report(folds={"0": ("0", "1"), "1": ("2", "3")})

    rows = {row[0]: row for row in table_cells(report).rows}

    assert rows["single"][-2:] == ("1 x 2", "1.0 x")
    assert rows["soft"][-2:] == ("2 x 2", "2.0 x")
    assert choice_line(report) == (
        "the choice, made on 60 images of train, stop and ens, each predicted by a network that "
        "did not learn from it; every member, the single model too, is the mean of 2 such networks"
    )


def test_a_verdict_may_flatter_where_its_method_was_asked_for_after_an_opening() -> None:
    chosen = make_report()
    first = replace(chosen, is_asked_for=True)
    later = replace(first, n_test_openings=11)

    assert choice_line(first) == "asked for with --method"
    assert openings_line(first) == "the test role has been opened once so far"
    assert openings_line(later).startswith("the test role has been opened 11 times so far, so")
    assert openings_line(later).endswith("the verdict may flatter")
    assert "flatter" not in openings_line(replace(chosen, n_test_openings=11))
    old = {key: value for key, value in first.to_json().items() if key != "is_asked_for"}
    assert not Report.from_json(old).is_asked_for

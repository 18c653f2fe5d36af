import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from curves import POINT

from search.curve_points import (
    MAX_POINTS,
    CurvePoint,
    add_point,
    read_curve,
    write_curve,
)
from search.paths import StudyPaths


def make_curve(n_points: int) -> tuple[CurvePoint, ...]:
    points: tuple[CurvePoint, ...] = ()
    for n_finished in range(1, n_points + 1):
        points = add_point(points, replace(POINT, n_finished=n_finished))
    return points


def test_a_point_says_what_the_ensemble_gains_and_how_far_stop_flatters() -> None:
    assert POINT.sentence() == (
        "ensemble so far: log-loss 0.6120, accuracy 78.10 % on the ens role "
        "(5 members, +2.00 points on trial 7); stop flatters that trial by +0.012 nats, "
        "+0.4 points (not distinguishable)"
    )


def test_a_trial_that_stop_flatters_is_told_without_a_reservation() -> None:
    flattered = replace(POINT, overtuning=replace(POINT.overtuning, verdict="flattered"))

    assert flattered.sentence().endswith("by +0.012 nats, +0.4 points")


def test_a_curve_that_was_written_is_read_back(tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path)
    curve = (POINT, replace(POINT, n_finished=11, seconds=4.0))

    write_curve(paths, curve)

    assert read_curve(paths) == curve


def test_a_study_without_a_curve_has_an_empty_one(tmp_path: Path) -> None:
    assert read_curve(StudyPaths(tmp_path)) == ()


@pytest.mark.parametrize("text", ["{", "[]", '{"points": [{"n_finished": 3}]}'])
def test_a_curve_that_cannot_be_read_counts_as_none_and_is_logged(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = StudyPaths(tmp_path)
    paths.ensemble_curve.write_text(text, encoding="utf-8")

    with caplog.at_level(logging.WARNING):
        assert read_curve(paths) == ()

    assert "ensemble_curve.json: cannot be read" in caplog.text


def test_a_point_replaces_one_of_as_many_trials() -> None:
    newer = replace(POINT, seconds=9.0)

    assert add_point([POINT], newer) == (newer,)


def test_a_long_curve_keeps_its_ends_and_stays_spread() -> None:
    numbers = [point.n_finished for point in make_curve(1000)]

    gaps = [after - before for before, after in pairwise(numbers)]
    assert len(numbers) == MAX_POINTS
    assert (numbers[0], numbers[-1]) == (1, 1000)
    assert max(gaps) <= 3 * 1000 / MAX_POINTS

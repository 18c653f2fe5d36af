from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def benchmark(load_script: Callable[[str], Any]) -> Any:
    return load_script("ranking")


def test_what_diverged_is_last_in_the_ranks(benchmark: Any) -> None:
    reference = np.array([1.0, 2.0, 3.0, np.inf])

    assert benchmark._spearman(np.array([10.0, 20.0, 30.0, np.inf]), reference) == pytest.approx(1)
    assert benchmark._spearman(np.array([3.0, 2.0, 1.0, -np.inf]), reference) == pytest.approx(-1)


def test_a_look_that_tells_nothing_apart_has_no_correlation(benchmark: Any) -> None:
    reference = np.array([1.0, 2.0, 3.0])

    assert benchmark._spearman(np.array([np.inf] * 3), reference) == 0


def test_bars_want_short_schedules_to_rank_better_than_cuts_and_late_cuts_well(
    benchmark: Any,
) -> None:
    good = {"complete, 1/4 as long": 0.9, "cut after 1/4": 0.8, "cut after 1/2": 0.95}
    bad = {"complete, 1/4 as long": 0.7, "cut after 1/4": 0.8, "cut after 1/2": 0.85}

    assert [bar.holds for bar in benchmark._bars(good)] == [True, True]
    assert [bar.holds for bar in benchmark._bars(bad)] == [False, False]

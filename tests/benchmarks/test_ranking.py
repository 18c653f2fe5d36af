import argparse
import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from spaces.recipe import Recipe

FloatArray: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]


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


def test_bars_want_short_schedules_to_rank_no_worse_than_cuts_and_late_cuts_well(
    benchmark: Any,
) -> None:
    reference = np.arange(20.0)
    shuffled = np.random.default_rng(0).permutation(reference)

    def hold(*, complete: FloatArray, cut: FloatArray, late: FloatArray) -> list[bool]:
        looks = {benchmark.COMPLETE: complete, benchmark.CUT: cut, benchmark.LATE_CUT: late}
        ranks = {look: benchmark._spearman(losses, reference) for look, losses in looks.items()}
        return [bar.holds for bar in benchmark._bars(looks, ranks, reference)]

    assert hold(complete=reference, cut=shuffled, late=reference) == [True, True]
    assert hold(complete=reference, cut=reference, late=shuffled) == [True, False]
    assert hold(complete=shuffled, cut=reference, late=reference) == [False, True]


def test_all_looks_and_ends_stand_in_the_table(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "n_steps_per_epoch", lambda *_: 4)
    losses = dict.fromkeys(itertools.product((1, 2, 3, 4), benchmark.KINDS), 1)
    monkeypatch.setattr(benchmark._Bench, "_train", lambda *_, **__: losses)
    flags = argparse.Namespace(quick=True, data=None, configurations=3, epochs=4, images=100)

    outcome = benchmark.measure(flags)

    assert len(outcome.rows) == 8 + 2
    assert [row[3] for row in outcome.rows[-2:]] == ["+0.000 ± 0.000"] * 2
    assert set(outcome.figures["looks"]) == {row[0] for row in outcome.rows[:8]}


def test_the_price_of_looks_leaves_out_what_diverged(benchmark: Any) -> None:
    mean, error = benchmark._price(np.array([1.0, np.inf, 3.0, np.nan]))

    assert (mean, error) == pytest.approx((2.0, 1.0))


def test_wsd_with_its_looks_takes_as_many_steps_as_the_long_schedule(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "n_steps_per_epoch", lambda *_: 100)
    told: list[tuple[str, int]] = []
    losses = dict.fromkeys(itertools.product((1, 2, 3, 4), benchmark.KINDS), 1)

    def train(_: Any, recipe: Recipe, n_steps: int, *__: Any, **___: Any) -> Any:
        told.append((recipe.optimizer.schedule, n_steps))
        return losses

    monkeypatch.setattr(benchmark._Bench, "_train", train)
    flags = argparse.Namespace(quick=True, data=None, configurations=1, epochs=4, images=100)
    benchmark.measure(flags)

    look, long = (n_steps for schedule, n_steps in told if schedule == "wsd")
    assert look == 100
    # The decays of a look at 100 and of one at 200 steps, a fifth of each, are thrown away.
    assert long + 20 + 40 == 400

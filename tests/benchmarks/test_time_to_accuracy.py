import math
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def benchmark(load_script: Callable[[str], Any]) -> Any:
    return load_script("time_to_accuracy")


def reached(benchmark: Any, *pairs: tuple[float, float]) -> list[Any]:
    return [
        benchmark.Reached(
            name="any", n_epochs=1, accuracy=accuracy, seconds=seconds, wall_seconds=seconds
        )
        for accuracy, seconds in pairs
    ]


def test_the_cheapest_training_that_reaches_an_accuracy_counts(benchmark: Any) -> None:
    trainings = reached(benchmark, (0.69, 5), (0.83, 30), (0.81, 20), (0.9, 200))

    assert benchmark.seconds_to(trainings, 0.8) == 20
    assert benchmark.seconds_to(trainings, 0.9) == 200
    assert benchmark.seconds_to(trainings, 0.91) == math.inf


def test_bars_hold_for_what_is_fast_enough_and_no_other(benchmark: Any) -> None:
    tutorial = reached(benchmark, (0.6, 100), (0.69, 300))
    fast = reached(benchmark, (0.78, 20), (0.81, 28), (0.83, 57), (0.88, 240))
    slow = reached(benchmark, (0.71, 20.1), (0.79, 28), (0.83, 57.1), (0.877, 240))

    assert [bar.holds for bar in benchmark._bars(fast, tutorial)] == [True] * 5
    assert [bar.holds for bar in benchmark._bars(slow, tutorial)] == [False] * 5


def test_a_plan_is_read_as_places_epochs_and_the_size_of_early_images(benchmark: Any) -> None:
    planned = benchmark._plan("2:4,7:15:0.75")

    assert planned == [benchmark.Planned(2, 4), benchmark.Planned(7, 15, 0.75)]
    assert ",".join(map(str, planned)) == "2:4,7:15:0.75"

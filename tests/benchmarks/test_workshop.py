from collections.abc import Callable
from typing import Any

import optuna
import pytest

from search.config import StudyConfig
from search.narrowing import choose_space
from spaces.space import suggest_recipe
from spaces.task import Task


@pytest.fixture
def benchmark(load_script: Callable[[str], Any]) -> Any:
    return load_script("workshop")


def test_nothing_of_the_tutorials_network_and_training_is_left_to_chance(benchmark: Any) -> None:
    space = choose_space(StudyConfig(space="default", vary=benchmark.TUTORIAL_POINT))
    trial = optuna.create_study().ask()

    recipe = suggest_recipe(trial, space, Task(image_size=32, channels=3, n_classes=10))

    assert set(trial.params) == {"optimizer.weight_decay_factor"}
    assert recipe.augmentation.early_size == 1

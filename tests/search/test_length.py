from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import make_tiny_study
from torch import nn

from search import length
from search.devices import Slot
from search.length import plan_steps
from search.schedule import Plan
from search.training import Round, n_steps_per_epoch
from search.workplace import Workplace, open_workplace
from spaces.augmentation import EARLY_STEPS, is_early
from spaces.known import known_recipes
from spaces.recipe import Recipe

LATE_SECONDS = 2.0


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """Return a place whose trials have the length that their seconds allow."""
    study = make_tiny_study(tmp_path, epochs=None, trial_budget="1s")
    place = open_workplace(study.paths, study.record, Slot(number=0, device="cpu", n_threads=1),
                           lambda: False)  # fmt: skip
    plan = Plan(n_rounds=10, n_epochs=None, seconds=1.0)
    return replace(place, record=place.record.model_copy(update={"plan": plan}))


@pytest.fixture
def recipe(place: Workplace) -> Recipe:
    return known_recipes(place.record.space, place.record.task)[0]


def pretend(monkeypatch: pytest.MonkeyPatch, *, early_seconds: float) -> None:
    """Let early steps take so many seconds, the others two, and predictions nothing."""

    def train(*_: object, n_steps: int, **__: Any) -> Iterator[Round]:
        seconds = 100.0  # the first step pays for what is set up once
        for done in range(n_steps):
            seconds += early_seconds if is_early(done, n_steps) else LATE_SECONDS
            yield Round(number=done + 1, network=nn.Flatten(), unaveraged=None, train_loss=0.0,
                        images_seen=0, seconds=seconds, state=dict)  # fmt: skip

    monkeypatch.setattr(length, "train", train)
    monkeypatch.setattr(length, "_time_image", lambda *_: 0.0)


@pytest.mark.parametrize("early_seconds", [LATE_SECONDS, 1.0, 0.5])
def test_a_schedule_fits_into_its_seconds_with_early_steps_as_cheap_as_they_are(
    monkeypatch: pytest.MonkeyPatch, place: Workplace, recipe: Recipe, early_seconds: float
) -> None:
    pretend(monkeypatch, early_seconds=early_seconds)
    per_epoch = n_steps_per_epoch(len(place.images.rows), recipe.optimizer.batch_size)
    mean = EARLY_STEPS * early_seconds + (1 - EARLY_STEPS) * LATE_SECONDS

    n_steps = plan_steps(recipe, place, 20.5 * per_epoch * mean, seed=0)

    assert n_steps == 20 * per_epoch


def test_four_times_the_seconds_are_about_four_times_the_steps(
    place: Workplace, recipe: Recipe
) -> None:
    few, many = (plan_steps(recipe, place, seconds, seed=0) for seconds in (2.0, 8.0))

    assert 2 < many / few < 8


def test_epochs_are_only_limited_where_nobody_said_how_long_a_trial_takes(
    monkeypatch: pytest.MonkeyPatch, place: Workplace, recipe: Recipe
) -> None:
    pretend(monkeypatch, early_seconds=LATE_SECONDS)
    per_epoch = n_steps_per_epoch(len(place.images.rows), recipe.optimizer.batch_size)
    config = place.record.config.replaced(trial_budget=None)
    unsaid = replace(place, record=place.record.model_copy(update={"config": config}))
    seconds = 100.5 * per_epoch * LATE_SECONDS

    assert plan_steps(recipe, place, seconds, seed=0) == 100 * per_epoch
    assert plan_steps(recipe, unsaid, seconds, seed=0) == 64 * per_epoch


def test_stated_epochs_are_whole_ones(place: Workplace, recipe: Recipe) -> None:
    plan = Plan(n_rounds=3, n_epochs=3, seconds=None)
    stated = replace(place, record=place.record.model_copy(update={"plan": plan}))
    per_epoch = n_steps_per_epoch(len(place.images.rows), recipe.optimizer.batch_size)

    assert plan_steps(recipe, stated, None, seed=0) == 3 * per_epoch

"""Which recipes students of an ensemble get, and the order of their trainings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.assignments import Assignment, Lesson, Order
from search.candidates import Candidate
from search.errors import ConfigError, NothingToDoError
from search.extra_trainings import expected_seconds, planned_epochs
from search.samplers import make_sampler
from search.seeding import derive_seed
from search.study import Study
from spaces.space import suggest_recipe


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    """What a student is built and trained by."""

    title: str
    """Where it comes from: `trial 17`, or `point 2 of the space`."""
    parameters: Mapping[str, Any]
    like: FrozenTrial
    """The trial that it is as long as, and takes about as much time as."""
    is_own: bool
    """Whether the recipe is that of this trial."""


def choose_recipes(
    study: Study, *, trial_number: int | None = None, n_recipes: int = 1
) -> list[StudentRecipe]:
    """Return the recipes that students get.

    Args:
        study: A study with complete trials.
        trial_number: Whose recipe a single student gets; default: the best trials'.
        n_recipes: Different recipes, of the best trials first. Where the study has fewer, the
            rest are points that are drawn from its space.

    Raises:
        NothingToDoError: No trial is complete.
        ConfigError: There is no finished trial of this number, or several recipes are asked for
            beside it.
    """
    leaders = study.leaders()
    if not leaders:
        raise NothingToDoError(
            f"study {study.name!r} has no complete trial whose recipe a student could get."
        )
    if trial_number is not None:
        if n_recipes > 1:
            raise ConfigError(
                f"--student {trial_number} names the one recipe, so --students must be 1, "
                f"got {n_recipes}."
            )
        return [_of_trial(_find_trial(study, trial_number))]
    different: dict[str, FrozenTrial] = {}
    for trial in leaders:
        different.setdefault(repr(trial.user_attrs["recipe"]), trial)
    recipes = [_of_trial(trial) for trial in list(different.values())[:n_recipes]]
    n_drawn = n_recipes - len(recipes)
    return recipes + [_draw(study, leaders[0], number) for number in range(1, n_drawn + 1)]


def order_student(
    study: Study,
    recipe: StudentRecipe,
    lesson: Lesson,
    teachers: Sequence[Candidate],
    *,
    epochs: int | None = None,
) -> Order:
    """Return the order of one student's training.

    Args:
        study: Where recipe and teacher come from.
        recipe: What the student is.
        lesson: What it learns.
        teachers: The members of its teacher, all of which are asked about every image.
        epochs: Passes through the train role; default: as many as a trial has.
    """
    usual = planned_epochs(study, recipe.like)
    length = usual if epochs is None else float(epochs)
    asking = (
        length * study.record.role_sizes["train"] * sum(each.milliseconds for each in teachers)
    )
    return Order(
        name=f"student of {lesson.teacher}, recipe of {recipe.title}, {length:.4g} epochs, "
        f"temperature {lesson.temperature:g}, share {lesson.share:g}",
        parameters=recipe.parameters,
        assignment=Assignment(
            seed=derive_seed(study.record.config.seed, "student", recipe.title),
            epochs=length,
            lesson=lesson,
        ),
        expected_seconds=expected_seconds(study, recipe.like) * length / usual + asking / 1000,
    )


def _of_trial(trial: FrozenTrial) -> StudentRecipe:
    return StudentRecipe(
        title=f"trial {trial.number}", parameters=trial.params, like=trial, is_own=True
    )


def _find_trial(study: Study, number: int) -> FrozenTrial:
    for trial in study.trials():
        if trial.number == number and "log_loss" in trial.user_attrs:
            return trial
    raise ConfigError(
        f"--student: study {study.name!r} has no trial {number} that left a result; "
        "`python -m search best` lists the best ones."
    )


def _draw(study: Study, like: FrozenTrial, number: int) -> StudentRecipe:
    """Draw one point from the space of the study."""
    record = study.record
    seed = derive_seed(record.config.seed, "student", number)
    sampler = make_sampler("random", seed=seed, space=record.space, task=record.task)
    drawn = optuna.create_study(sampler=sampler).ask()
    suggest_recipe(drawn, record.space, record.task)
    return StudentRecipe(
        title=f"point {number} of the space", parameters=drawn.params, like=like, is_own=False
    )

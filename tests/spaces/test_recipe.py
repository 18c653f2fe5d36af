import json
from typing import Any

import pytest
from optuna.trial import FixedTrial

from spaces.errors import SpaceError
from spaces.known import known_parameters
from spaces.recipe import Recipe, recipe_from_json
from spaces.space import Space, suggest_recipe
from spaces.task import Task


@pytest.fixture
def recipe(cifar: Task) -> Recipe:
    return suggest_recipe(FixedTrial(known_parameters(Space(), cifar)[0]), Space(), cifar)


def test_a_recipe_comes_back_from_json_text(recipe: Recipe) -> None:
    assert recipe_from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_equal_recipes_are_one_key(recipe: Recipe) -> None:
    assert len({recipe, recipe_from_json(recipe.to_json())}) == 1


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("architecture", "colour", 1, r"recipe: architecture\.colour: .*got 1"),
        ("architecture", "family", "transformer", r"recipe: architecture\.family: .*transformer"),
        ("optimizer", "batch_size", "many", r"recipe: optimizer\.batch_size: .*got 'many'"),
        ("augmentation", "flip", None, r"recipe: augmentation\.flip: .*got None"),
        ("augmentation", "crop", 2.0, r"augmentation\.crop must be in \[0, 1\], got 2\.0"),
    ],
)
def test_a_recipe_with_a_strange_value_is_refused_by_name(
    recipe: Recipe, part: str, key: str, value: object, message: str
) -> None:
    values: Any = json.loads(json.dumps(recipe.to_json()))
    values[part][key] = value

    with pytest.raises(SpaceError, match=message):
        recipe_from_json(values)


def test_a_recipe_with_a_missing_part_is_refused(recipe: Recipe) -> None:
    values = recipe.to_json()
    del values["optimizer"]

    with pytest.raises(SpaceError, match=r"recipe: optimizer: Field required"):
        recipe_from_json(values)

"""All that one trial chose."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from spaces.architecture import Architecture
from spaces.augmentation import Augmentation
from spaces.errors import SpaceError
from spaces.optimizer import Optimizer
from spaces.strict import STRICT

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that one trial chose: a network, its training and its images."""

    __pydantic_config__ = STRICT

    architecture: Architecture
    optimizer: Optimizer
    augmentation: Augmentation

    def to_json(self) -> dict[str, JsonValue]:
        """Return the recipe as JSON values; `recipe_from_json` reads them back."""
        return asdict(self)


def recipe_from_json(values: object) -> Recipe:
    """Read a recipe from JSON values.

    Args:
        values: What `Recipe.to_json` returned, as such or parsed from JSON text.

    Returns:
        The same recipe.

    Raises:
        SpaceError: A key is missing or unknown, or a value is out of range.
    """
    try:
        return _reader()(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpaceError(f"recipe: {where}: {first['msg']}, got {first['input']!r}.") from error


@cache
def _reader() -> Callable[[object], Recipe]:
    """Build the reader at its first use: it takes 40 ms, which `--help` does not need."""
    return TypeAdapter(Recipe).validate_python

"""From `--vary.kernel_sizes 3,5` and `[vary]` tables to a narrower space."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from search.config import StudyConfig
from search.errors import ConfigError
from search.words import suggestion
from spaces.errors import SpaceError
from spaces.space import SPACES, Space
from spaces.trial import Value


def choose_space(config: StudyConfig) -> Space:
    """Return the space that a study searches, narrowed as the user asked.

    Pruners that look before the middle of a schedule must not meet networks that have seen small
    images alone: there images are whole, unless the user says otherwise.

    Raises:
        ConfigError: `vary` names what no space has, or values that it does not take.
    """
    base = config.space
    if base == "auto":
        base = "digits" if config.data == "digits" else "default"
    space = SPACES[base]
    if config.pruner in ("sha", "hyperband"):
        space = replace(space, early_size=(1.0, 1.0))
    return narrow(space, config.vary)


def narrow(space: Space, changes: Mapping[str, Value | list[Value]]) -> Space:
    """Return the space with some of its choices and ranges replaced.

    Args:
        space: The space to begin with.
        changes: By field of `Space`: a list, one value, or text with commas between the values.
            One value means that nothing is left to choose.

    Returns:
        The checked space.

    Raises:
        ConfigError: A field is unknown, or a value is not one that it takes.
    """
    known = tuple(field.name for field in fields(Space))
    values: dict[str, object] = asdict(space)
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"vary: unknown field {name!r}{suggestion(name, known)}")
        values[name] = _as_list(value, is_range=_is_range(name))
    try:
        return TypeAdapter(Space).validate_python(values)
    except SpaceError as error:
        raise ConfigError(f"vary: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise ConfigError(f"vary: {where}: {message}, got {first['input']!r}.") from error


def _is_range(name: str) -> bool:
    arguments = get_args(get_type_hints(Space)[name])
    return len(arguments) == 2 and Ellipsis not in arguments


def _as_list(value: Value | list[Value], *, is_range: bool) -> list[Value]:
    if isinstance(value, str):
        value = [_atom(part.strip()) for part in value.split(",")]
    if not isinstance(value, list):
        value = [value]
    return value * 2 if is_range and len(value) == 1 else value


def _atom(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

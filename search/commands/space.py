"""What a space lets a study vary."""

import json as json_format
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from search.errors import ConfigError
from search.words import suggestion
from spaces.space import SPACES


def main(
    name: str = "default", /, *, json: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Show what a space lets a study vary; `--vary.FIELD VALUES` of `run` narrows it.

    Args:
        name: default, digits or small.
        json: Print one JSON document.
    """
    if name not in SPACES:
        raise ConfigError(f"unknown space {name!r}{suggestion(name, SPACES)}")
    values = asdict(SPACES[name])
    if json:
        print(json_format.dumps({"schema": 1, "space": name, **values}))
        return
    for field, value in values.items():
        items = value if isinstance(value, tuple) else (value,)
        words = (f"{item:g}" if isinstance(item, float) else str(item) for item in items)
        print(f"{field:<22} {', '.join(words)}")

"""The order in which people expect names: trial 2 before trial 10."""

import re

_DIGITS = re.compile(r"(\d+)")


def natural_order(name: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sorting key that reads runs of digits as numbers.

    >>> sorted(["b", "a10", "a2"], key=natural_order)
    ['a2', 'a10', 'b']
    """
    parts: list[str | int] = list(_DIGITS.split(name))
    parts[1::2] = map(int, parts[1::2])  # a split by one group alternates text and digits
    return tuple(parts), name

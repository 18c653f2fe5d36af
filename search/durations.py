"""Spans of time as people type them."""

import re

from search.errors import ConfigError

_PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_duration(text: str) -> float:
    """Return the seconds in `90`, `90s`, `15m`, `1h30m` or `2h`.

    Args:
        text: Hours, minutes and seconds, in this order, each of them optional.

    Returns:
        Seconds, above 0.

    Raises:
        ConfigError: The text is no such span, or it is 0.
    """
    match = _PARTS.fullmatch(text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ConfigError(f"expected a time such as 90s, 15m or 1h30m, got {text!r}.")
    return total


def format_duration(seconds: float) -> str:
    """Return a short text for people: `42 s`, `3 min 05 s`, `1 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

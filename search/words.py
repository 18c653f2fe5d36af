"""What to say to somebody who mistyped a word."""

import difflib
from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'trials'?`, or the known words where none is near."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}" if near else f"; known are {', '.join(words)}"

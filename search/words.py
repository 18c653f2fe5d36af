"""Words for the command line: what a user meant, and what to type next."""

import difflib
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from search.paths import DEFAULT_STUDIES


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'trials'?`, or the known words where none is near."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(words)}."


def is_text(name: str) -> bool:
    """Tell whether a name can be written as UTF-8; on the disk a file may have any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def n_of(n_finished: int, n_asked: int) -> str:
    """Return `6 of 20`, or `100` where a study has more than somebody asks of it now."""
    return f"{n_finished} of {n_asked}" if n_finished <= n_asked else str(n_finished)


def program() -> str:
    """Return how this program was called: `concertino`, or `python -m search`."""
    return "concertino" if Path(sys.argv[0]).name == "concertino" else "python -m search"


def command(words: str, studies: Path) -> str:
    """Return a command to type, with the folder of studies where it is not the usual one."""
    where = "" if studies == DEFAULT_STUDIES else f" --studies {shlex.quote(str(studies))}"
    return f"{program()} {words}{where}"

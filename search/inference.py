"""What `predict` and `evaluate` share: pictures by their names, a device, what goes to stderr."""

import glob
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from search.errors import ConfigError
from search.words import suggestion


def find_pictures(
    words: Sequence[str],
    lines: Iterable[str],
    *,
    complain: Callable[[str, str], None],
) -> Iterator[Path]:
    """List the pictures that words on a command line mean, one by one.

    Args:
        words: Files, folders, patterns such as `photos/**/*.jpg`, or `-` for names from `lines`.
        lines: One file, folder or pattern in each; read only as far as pictures are asked for.
        complain: Called with a word and the reason, for each word that means nothing.

    Yields:
        Files that exist; whether they hold pictures is not known yet.
    """
    from ensembles.images import ImageError, list_images  # noqa: PLC0415
    from ensembles.ordering import natural_order  # noqa: PLC0415

    for word in _names(words, lines):
        path = Path(word)
        if path.is_dir():
            try:
                pictures = list_images(path)
            except ImageError as error:
                complain(word, str(error))
                continue
            if not pictures:
                complain(word, "no picture in this folder")
            yield from pictures
        elif path.exists():
            yield path
        elif glob.has_magic(word):
            # The shell leaves a pattern as it is where it is quoted or matches nothing.
            found = sorted(glob.glob(word, recursive=True), key=natural_order)  # noqa: PTH207
            files = [name for name in found if Path(name).is_file()]
            if not files:
                complain(word, "no file matches")
            yield from map(Path, files)
        else:
            complain(word, "no such file")


def refuse_unknown_flags(words: Iterable[str], known: Iterable[str]) -> None:
    """Refuse words that look like flags: a command that takes `-` gets them as names.

    Args:
        words: What stands where names are expected.
        known: The flags of the command.

    Raises:
        ConfigError: A word begins with a hyphen and is no file.
    """
    for word in words:
        if word.startswith("-") and word != "-" and not Path(word).exists():
            raise ConfigError(f"unknown option {word}{suggestion(word, known)}")


def choose_device(name: str) -> str:
    """Return the device that a name means.

    Args:
        name: `auto` (a GPU if there is one), `cpu` or, for example, `cuda:1`.

    Returns:
        What torch calls it.

    Raises:
        ConfigError: There is no such device here.
    """
    import torch  # noqa: PLC0415

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"--device {name}: must be auto, cpu, cuda or cuda:N, got {name!r}."
        ) from None
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise ConfigError(f"--device {name}: torch finds {n_gpus} GPUs here.")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: must be auto, cpu, cuda or cuda:N, got {name!r}.")
    return str(device)


class Complaints:
    """Names on stderr what could not be read, and counts it."""

    def __init__(self) -> None:
        self.n_problems = 0

    def add(self, name: str, problem: str) -> None:
        """Name one file or word."""
        self.n_problems += 1
        print(f"{printable(name)}: {printable(problem)}", file=sys.stderr)  # noqa: T201


@contextmanager
def picture_counter(*, visible: bool) -> Iterator[Callable[[int], None]]:
    """Count the pictures on stderr, where a long silence would look like a hang."""
    from rich.console import Console  # noqa: PLC0415

    n_pictures = 0
    with Console(stderr=True, quiet=not visible).status("0 pictures") as status:

        def show_count(n_more: int) -> None:
            nonlocal n_pictures
            n_pictures += n_more
            status.update(f"{n_pictures:,} pictures")

        yield show_count


def printable(text: str) -> str:
    """Return text that a terminal shows as it is: a name may hold line ends and escape codes."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _names(words: Sequence[str], lines: Iterable[str]) -> Iterator[str]:
    for word in words:
        if word == "-":
            yield from filter(None, (line.rstrip("\r\n") for line in lines))
        else:
            yield word

"""Ctrl-C and SIGTERM: the first one asks to stop, the second one ends at once."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SHOW_CURSOR = b"\x1b[?25h\n"  # the live table hides it, and has no time to bring it back


@dataclass
class Interruption:
    """Which signal came, if any."""

    signal_number: int = 0

    def __call__(self) -> bool:
        """Tell whether somebody asked to stop."""
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal_number


def until_interrupted(
    interruption: Interruption, show: Callable[[int, int], None], say: Callable[[str], object]
) -> Callable[[int, int], None]:
    """Return what is told how many images are decoded, and leaves when somebody asks to stop.

    Args:
        interruption: Tells whether somebody does.
        show: Shows how many images are decoded, of how many.
        say: Prints a sentence.

    Returns:
        A function that calls `show`; after a signal it raises SystemExit with the exit code.
    """

    def on_decode(n_done: int, n_images: int) -> None:
        show(n_done, n_images)
        if interruption():
            say("interrupted while decoding images; the same command decodes them")
            raise SystemExit(interruption.exit_code)

    return on_decode


@contextmanager
def watched_signals() -> Iterator[Interruption]:
    """Turn the first Ctrl-C or SIGTERM into a flag; the second one kills this process.

    Workers notice the death of their parent and hand their trials back by themselves; what is
    finished stays finished.
    """
    interruption = Interruption()

    def handle(number: int, _frame: FrameType | None) -> None:
        if interruption.signal_number:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), _SHOW_CURSOR)
            os._exit(128 + number)
        interruption.signal_number = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What a worker and its supervisor show each other while the worker runs, in shared memory.

The database would do for it too, at some milliseconds for each look; a worker shows a sign of life
at every step, which here costs a tenth of a microsecond.
"""

import ctypes
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any

NO_TRIAL = -1
_MAX_BYTES = 400


class _Numbers(ctypes.Structure):
    """Numbers of one aligned word each, so that no reader sees half of one."""

    _fields_ = (
        ("trial_number", ctypes.c_int64),
        ("n_beats", ctypes.c_int64),
        ("n_rounds", ctypes.c_int64),
        ("memory_share", ctypes.c_double),
        ("trouble", ctypes.c_char * _MAX_BYTES),
    )


def _own_numbers() -> _Numbers:
    return _Numbers(trial_number=NO_TRIAL, memory_share=1.0)


@dataclass(frozen=True)
class Panel:
    """Signs of life of one worker; by itself, one that nobody else looks at."""

    _numbers: Any = field(default_factory=_own_numbers)

    @property
    def trial_number(self) -> int:
        """The trial that the worker is at, or `NO_TRIAL`."""
        return int(self._numbers.trial_number)

    @property
    def n_beats(self) -> int:
        """Signs of life so far: steps, batches that are predicted, beginnings and ends."""
        return int(self._numbers.n_beats)

    @property
    def n_rounds(self) -> int:
        """Rounds and trials that the worker has got through."""
        return int(self._numbers.n_rounds)

    @property
    def trouble(self) -> str:
        """What the worker said when it gave up; empty if it said nothing."""
        return bytes(self._numbers.trouble).decode("utf-8", errors="ignore")

    @property
    def memory_share(self) -> float:
        """What the worker may take of its GPU's memory, from its next trial on."""
        return float(self._numbers.memory_share)

    def grant(self, memory_share: float) -> None:
        """Say, as the supervisor, what the worker may take of its GPU's memory."""
        self._numbers.memory_share = memory_share

    def beat(self) -> None:
        """Show that the worker gets on."""
        self._numbers.n_beats += 1

    def begin_trial(self, trial_number: int) -> None:
        """Show which trial the worker is at."""
        self._numbers.trial_number = trial_number
        self.beat()

    def end_round(self) -> None:
        """Show that a round or a whole trial is through."""
        self._numbers.n_rounds += 1
        self.beat()

    def end_trial(self) -> None:
        """Show that the worker is at no trial; whatever became of the last one is told."""
        self._numbers.trial_number = NO_TRIAL
        self.beat()

    def tell(self, trouble: str) -> None:
        """Say why the worker gives up."""
        self._numbers.trouble = trouble.encode()[:_MAX_BYTES]


def shared_panel(context: BaseContext) -> Panel:
    """Return a panel that a process of this context may be given when it is started."""
    numbers = context.RawValue(_Numbers)
    numbers.trial_number, numbers.memory_share = NO_TRIAL, 1.0
    return Panel(numbers)

"""The time that a trial is given: that in which its process could work.

The monotonic clock cannot be set and stands still while the machine sleeps, but it goes on while a
process is stopped (Ctrl-Z, a scheduler that suspends jobs). What passed between the last look at
the clock and the signal to go on is left out; so no trial is out of time for having been stopped.
The budget of a run is another thing: who stops a run himself has let its time pass.
"""

import signal
import time
from dataclasses import dataclass, field


@dataclass
class _Stopwatch:
    """What one process has seen of the monotonic clock."""

    looked_at: float = field(default_factory=time.monotonic)
    stopped_seconds: float = 0.0


_STOPWATCH = _Stopwatch()  # a process has one clock, as it has one set of signal handlers


def working_seconds() -> float:
    """Return the seconds in which this process could work, from any moment on."""
    _STOPWATCH.looked_at = time.monotonic()
    return _STOPWATCH.looked_at - _STOPWATCH.stopped_seconds


def leave_out_stops() -> None:
    """From now on leave out the time in which this process is stopped; once in every worker."""
    if hasattr(signal, "SIGCONT"):
        signal.signal(signal.SIGCONT, lambda _number, _frame: _go_on())


def _go_on() -> None:
    now = time.monotonic()
    _STOPWATCH.stopped_seconds += now - _STOPWATCH.looked_at
    _STOPWATCH.looked_at = now

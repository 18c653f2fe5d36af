"""A slot and the process that works on it: started, counted out, watched for signs of life."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event

from search.devices import Slot
from search.panel import NO_TRIAL, Panel, shared_panel
from search.workers import WorkerOrder, work

logger = logging.getLogger(__name__)

QUICK_DEATH_SECONDS = 30.0
MAX_QUICK_DEATHS = 3
FIRST_PAUSE_SECONDS = 1.0
"""After a quick death; after the next one in a row it is three times as long."""


@dataclass(frozen=True, kw_only=True)
class StoppedSlot:
    """A slot that gets no more workers in this run, while the others go on."""

    slot: Slot
    reason: str

    def sentence(self) -> str:
        """Return it as a clause, without a dot."""
        return f"slot {self.slot.number} ({self.slot.device}) is stopped: {self.reason}"


@dataclass
class Place:
    """A slot, its worker if it has one, and how its workers ended so far."""

    slot: Slot
    process: BaseProcess | None = None
    panel: Panel = field(default_factory=Panel)
    """Of the newest worker."""
    stopped_because: str = ""
    """Why it gets no more workers; empty while it does."""
    _started_at: float = 0.0
    _n_quick_deaths: int = 0
    _not_before: float = 0.0
    _n_beats: int = 0
    _silent_seconds: float = 0.0

    @property
    def wants_worker(self) -> bool:
        """Whether a worker may be started now."""
        vacant = self.process is None and not self.stopped_because
        return vacant and time.monotonic() >= self._not_before

    @property
    def is_alive(self) -> bool:
        """Whether a worker runs."""
        return self.process is not None and self.process.is_alive()

    def start(self, context: BaseContext, order: WorkerOrder, stop: Event) -> None:
        """Start a worker."""
        self.panel = shared_panel(context)
        self.panel.grant(self.slot.memory_share)
        self._n_beats, self._silent_seconds = 0, 0.0
        with _environment(order.environment), _ctrl_c_blocked():
            self.process = context.Process(  # type: ignore[attr-defined]
                target=work, args=(order, stop, self.panel), name=f"worker-{self.slot.number}"
            )
            self.process.start()
        self._started_at = time.monotonic()
        logger.info("slot %d: worker %d started", self.slot.number, self.process.pid)

    def note_end(self, *, excused: bool) -> None:
        """Take note that the worker has ended; one that died at once makes the next one wait.

        A death is quick if no round was finished before it: a worker that gets on may be killed
        as often as somebody likes. The third quick one in a row stops the slot.

        Args:
            excused: Whether the trial was to blame, and has failed for it.
        """
        process, self.process = self.process, None
        if process is None or (process.exitcode == 0 and self.panel.trial_number == NO_TRIAL):
            return
        how = explain_exit(process.exitcode)
        logger.error("slot %d: worker %s ended by %s", self.slot.number, process.pid, how)
        lived = time.monotonic() - self._started_at
        quick = lived < QUICK_DEATH_SECONDS and not self.panel.n_rounds and not excused
        self._n_quick_deaths = self._n_quick_deaths + 1 if quick else 0
        pause = FIRST_PAUSE_SECONDS * (2**self._n_quick_deaths - 1)
        self._not_before = time.monotonic() + pause
        if self._n_quick_deaths >= MAX_QUICK_DEATHS:
            last = self.panel.trouble or how
            self.stop(f"its worker died {self._n_quick_deaths} times at once, last by {last}")

    def stop(self, reason: str) -> None:
        """Give the slot no more workers in this run; one that runs hands its trial back."""
        self.stopped_because = reason
        logger.error("slot %d is stopped: %s", self.slot.number, reason)
        if self.process is not None:
            self.process.terminate()

    def change_share(self, slot: Slot) -> None:
        """Give the worker, from its next trial on, and those after it another share."""
        self.slot = slot
        self.panel.grant(slot.memory_share)

    def count_silence(self, seconds: float) -> float:
        """Count for how long the worker has shown no sign of life.

        Args:
            seconds: That have passed since the last look.

        Returns:
            Seconds in all, 0 where there was a sign since.
        """
        n_beats = self.panel.n_beats
        self._silent_seconds = (
            self._silent_seconds + seconds if n_beats == self._n_beats and self.is_alive else 0.0
        )
        self._n_beats = n_beats
        return self._silent_seconds


def explain_exit(code: int | None) -> str:
    """Return how a process ended, in words: its exit code, or the signal that ended it."""
    if code is not None and code < 0:
        try:
            return f"signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for the process that is started meanwhile; a spawned one inherits them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Keep Ctrl-C from the process that is started meanwhile, and from all that it starts.

    Workers are told by `stop`. A fork server ignores Ctrl-C only after its imports, and would die
    of it with a traceback before.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

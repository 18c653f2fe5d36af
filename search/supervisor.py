"""Worker processes on one study: started, watched, replaced, stopped."""

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from optuna.trial import FrozenTrial, TrialState

from search.devices import Slot
from search.errors import DiskFullError, SearchError
from search.orphans import OrphanWatch
from search.paths import StudyPaths
from search.record import StudyRecord
from search.retention import free_weights
from search.schedule import Deadline
from search.storage import has_waiting, n_counted, open_study
from search.trials import FINISHED
from search.workers import WorkerOrder, work

logger = logging.getLogger(__name__)

# A look costs some 10 ms, which the workers miss; the end of a worker is seen at once.
POLL_SECONDS = 0.5
QUICK_DEATH_SECONDS = 30.0
MAX_QUICK_DEATHS = 3
MAX_FAILURES_IN_A_ROW = 5
# Modules that the fork server imports once; a worker then starts in 0.1 s instead of several.
# `torch._dynamo` is imported by the first step of any optimizer and takes a second.
PRELOADED = ["torch", "torch._dynamo", "torchvision", "search.loop"]
SECONDS_TO_STOP = 30.0


@dataclass
class _Place:
    """A slot and the process that works on it."""

    slot: Slot
    process: BaseProcess | None = None
    started_at: float = 0.0
    quick_deaths: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a study looks like at one moment of a run."""

    trials: tuple[FrozenTrial, ...]
    record: StudyRecord
    n_trials: int
    n_slots: int
    n_alive: int
    seconds: float
    """Since the run began."""
    seconds_left: float | None
    """Until the deadline of the search."""


@dataclass(frozen=True, kw_only=True)
class SearchEnd:
    """How the search of one run ended."""

    interrupted: bool
    """Whether somebody asked it to stop."""
    out_of_time: bool
    """Whether the budget ended it before all trials were finished."""


@dataclass
class Supervisor:
    """Runs workers on one study until it has enough trials.

    Others may do the same from other hosts; trials whose process is gone are handed back, whoever
    ran them.
    """

    paths: StudyPaths
    record: StudyRecord
    slots: list[Slot]
    deadline: Deadline | None
    on_change: Callable[[Snapshot], None]
    stop_requested: Callable[[], bool]
    is_guest: bool = False
    """Whether another host waits for the last trials; else they are waited for, wherever they
    run."""
    _places: list[_Place] = field(init=False)
    _context: BaseContext = field(init=False)
    _n_finished: int = field(default=0, init=False)
    _owes_trials: bool = field(default=False, init=False)
    """Whether a trial could not be handed back, since the disk is full."""

    def __post_init__(self) -> None:
        """Prepare a place for each slot; no process is started yet."""
        self._places = [_Place(slot) for slot in self.slots]
        self._context = start_context()

    def run(self) -> SearchEnd:
        """Work until the study has enough trials, time is up or somebody asks to stop.

        Returns:
            How it ended. No worker is alive any more, and no trial is left running.

        Raises:
            SearchError: Workers or trials fail again and again; the reason is in the message.
        """
        began = time.time()
        study = open_study(self.paths)
        watch = OrphanWatch(study)
        self._hand_back(watch, suspect=False)
        stop = self._context.Event()
        n_trials = self.record.config.trials
        try:
            while True:
                trials = study.get_trials(deepcopy=False)
                self._reap(watch)
                _refuse_hopeless(trials)
                interrupted = self.stop_requested()
                wanted = not interrupted and self._has_work(trials, n_trials)
                if wanted:
                    self._start_missing(stop, n_trials)
                self._tend(trials, began)
                if not wanted and (interrupted or not self._waits(trials, watch)):
                    break
                self._wait()
        finally:
            self._stop_all(stop)
            self._hand_back(watch, suspect=False)
        self._tend(study.get_trials(deepcopy=False), began)
        return SearchEnd(
            interrupted=interrupted,
            out_of_time=not interrupted and self._n_finished < n_trials,
        )

    def _tend(self, trials: list[FrozenTrial], began: float) -> None:
        """Free the weights that newly finished trials made needless, and tell what there is."""
        n_finished = sum(trial.state in FINISHED for trial in trials)
        if n_finished != self._n_finished:
            self._n_finished = n_finished
            config = self.record.config
            free_weights(self.paths, trials, keep=config.keep, metric=config.metric)
        self.on_change(self._snapshot(tuple(trials), began))

    def _wait(self) -> None:
        """Wait until a worker ends, or until it is time for the next look."""
        sentinels = [place.process.sentinel for place in self._places if place.process]
        if sentinels:
            wait(sentinels, timeout=POLL_SECONDS)
        else:
            time.sleep(POLL_SECONDS)

    def _has_work(self, trials: list[FrozenTrial], n_trials: int) -> bool:
        if self.deadline and self.deadline.too_late(trials, self.record.plan):
            return False
        if self._owes_trials:
            return True
        if self.record.ordered:
            return has_waiting(trials)
        return n_counted(trials) < n_trials

    def _waits(self, trials: list[FrozenTrial], watch: OrphanWatch) -> bool:
        """Tell whether trials may still end: ours, or of other hosts while there is time.

        A guest goes as soon as each of them is known to be in living hands.
        """
        if self._alive():
            return True
        if self.deadline and self.deadline.too_late(trials, self.record.plan):
            return False
        if self.is_guest:
            return watch.n_doubtful(trials) > 0
        return any(trial.state == TrialState.RUNNING for trial in trials)

    def _start_missing(self, stop: "multiprocessing.synchronize.Event", n_trials: int) -> None:
        for place in self._places:
            if place.process is not None or time.monotonic() < place.not_before:
                continue
            environment = place.slot.environment
            order = WorkerOrder(
                folder=self.paths.folder,
                slot=place.slot,
                environment=environment,
                n_trials=n_trials,
                deadline=self.deadline,
                images=self.record.store,
            )
            with _environment(environment):
                place.process = self._context.Process(  # type: ignore[attr-defined]
                    target=work, args=(order, stop), name=f"worker-{place.slot.number}"
                )
                place.process.start()
            place.started_at = time.monotonic()
            logger.info("slot %d: worker %d started", place.slot.number, place.process.pid)

    def _reap(self, watch: OrphanWatch) -> None:
        """Take note of workers that ended; hand back what they were running."""
        if self._owes_trials or watch.is_time_to_look():
            self._hand_back(watch, suspect=True)
        for place in self._places:
            process = place.process
            if process is None or process.is_alive():
                continue
            place.process = None
            if process.exitcode == 0:
                continue
            logger.error("slot %d: worker ended with %s", place.slot.number, process.exitcode)
            self._hand_back(watch, suspect=True)
            quick = time.monotonic() - place.started_at < QUICK_DEATH_SECONDS
            place.quick_deaths = place.quick_deaths + 1 if quick else 0
            place.not_before = time.monotonic() + 2.0**place.quick_deaths - 1
            if place.quick_deaths >= MAX_QUICK_DEATHS:
                raise SearchError(
                    f"the worker of slot {place.slot.number} ({place.slot.device}) died "
                    f"{place.quick_deaths} times at once, last with exit code {process.exitcode}; "
                    f"its log is in {self.paths.log}."
                )

    def _hand_back(self, watch: OrphanWatch, *, suspect: bool) -> None:
        """Hand back what nobody runs any more; on a full disk, at the next look, or next run."""
        try:
            watch.hand_back(suspect=suspect)
            self._owes_trials = False
        except DiskFullError as error:
            if not self._owes_trials:
                logger.warning("trials cannot be handed back yet: %s", error)
            self._owes_trials = True

    def _alive(self) -> list[_Place]:
        return [place for place in self._places if place.process and place.process.is_alive()]

    def _stop_all(self, stop: "multiprocessing.synchronize.Event") -> None:
        """Ask the workers to hand back their trials; kill those that do not."""
        stop.set()
        until = time.monotonic() + SECONDS_TO_STOP
        for place in self._alive():
            if place.process:
                place.process.join(max(0.0, until - time.monotonic()))
        for place in self._alive():
            if place.process:
                place.process.kill()
                place.process.join()

    def _snapshot(self, trials: tuple[FrozenTrial, ...], began: float) -> Snapshot:
        return Snapshot(
            trials=trials,
            record=self.record,
            n_trials=self.record.config.trials,
            n_slots=len(self.slots),
            n_alive=len(self._alive()),
            seconds=time.time() - began,
            seconds_left=self.deadline.left() if self.deadline else None,
        )


def start_context() -> BaseContext:
    """Return how processes are started: a fork server where there is one, else spawn.

    The server never computes with torch, so its children inherit no threads; it is started by the
    first worker, with the environment of that moment.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


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


def _refuse_hopeless(trials: list[FrozenTrial]) -> None:
    """Give up when the newest trials all failed by themselves.

    Those that somebody failed in the dashboard have no reason and do not count.

    Raises:
        SearchError: With the reason of the last one.
    """
    ended = [trial for trial in trials if trial.state.is_finished()]
    newest = ended[-MAX_FAILURES_IN_A_ROW:]
    if len(newest) == MAX_FAILURES_IN_A_ROW and all(
        trial.state == TrialState.FAIL and "failure" in trial.user_attrs for trial in newest
    ):
        reason = newest[-1].user_attrs["failure"]
        raise SearchError(f"the last {len(newest)} trials all failed: {reason}.")

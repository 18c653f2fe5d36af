"""Worker processes on one study: started, watched, replaced, stopped.

All spans of time are told by the monotonic clock: nobody can set it, and it stands still while the
machine sleeps. A process that was stopped (Ctrl-Z) finds it gone on; so silence of the workers is
counted in short steps, of which a pause of the supervisor is only one.
"""

import logging
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Event

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.devices import MemoryUse, Slot, share_out
from search.errors import DiskFullError, SearchError, StorageError
from search.location import has_study
from search.orphans import OrphanWatch
from search.owners import owner_of, this_process
from search.panel import NO_TRIAL
from search.paths import StudyPaths
from search.places import Place, StoppedSlot
from search.record import STOPPED_SLOTS, StudyRecord
from search.retention import free_weights
from search.schedule import Deadline
from search.storage import alone, has_waiting, n_counted, open_study
from search.trials import FINISHED, measured_memory
from search.workers import WorkerOrder

logger = logging.getLogger(__name__)

# A look costs some 10 ms, which the workers miss; the end of a worker is seen at once.
POLL_SECONDS = 0.5
MAX_SECONDS_OF_A_LOOK = 10.0
"""A longer one was no look: the supervisor itself had been stopped."""
MAX_FAILURES_IN_A_ROW = 5
# A worker that shows no step and no batch for so long hangs. At least, where a timeout or a budget
# says how long a trial is; at most, and where nothing says it.
SILENT_SECONDS = (300.0, 1800.0)
# Modules that the fork server imports once; a worker then starts in 0.1 s instead of several.
# `torch._dynamo` is imported by the first step of any optimizer and takes a second.
PRELOADED = ["torch", "torch._dynamo", "torchvision", "search.loop"]
SECONDS_TO_STOP = 30.0


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
    stopped_slots: tuple[StoppedSlot, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SearchEnd:
    """How the search of one run ended."""

    interrupted: bool
    """Whether somebody asked it to stop."""
    out_of_time: bool
    """Whether the budget ended it before all trials were finished."""
    stopped_slots: tuple[StoppedSlot, ...] = ()
    """Those that got no more workers, while the others went on."""


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
    _places: list[Place] = field(init=False)
    _context: BaseContext = field(init=False)
    _n_finished: int = field(default=0, init=False)
    _owes_trials: bool = field(default=False, init=False)
    """Whether a trial could not be handed back, since the disk is full."""
    _ended_before: frozenset[int] = field(default=frozenset(), init=False)
    _looked_at: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        """Prepare a place for each slot; no process is started yet."""
        self._places = [Place(slot) for slot in self.slots]
        self._context = start_context()

    def run(self) -> SearchEnd:
        """Work until the study has enough trials, time is up or somebody asks to stop.

        Returns:
            How it ended. No worker is alive any more, and no trial is left running.

        Raises:
            SearchError: No slot is left, all trials fail, or the study was deleted meanwhile; the
                reason is in the message.
        """
        try:
            return self._run()
        except (SearchError, OSError) as error:
            if has_study(self.paths):
                raise
            raise SearchError(f"study {self.paths.name!r} was deleted while it ran.") from error

    def _run(self) -> SearchEnd:
        began = time.monotonic()
        study = open_study(self.paths)
        watch = OrphanWatch(study)
        self._hand_back(watch, suspect=False)
        self._begin(study)
        stop = self._context.Event()
        n_trials = self.record.config.trials
        try:
            while True:
                self._check_presence()
                self._reap(watch)
                self._end_silent(study)
                trials = study.get_trials(deepcopy=False)
                self._look_at_ended(study, trials)
                interrupted = self.stop_requested()
                wanted = not interrupted and self._has_work(trials, n_trials)
                if wanted:
                    self._start_missing(stop, n_trials)
                self._tend(trials, began)
                if interrupted or not (wanted or self._waits(trials, watch)):
                    break
                self._wait()
        finally:
            self._stop_all(stop)
            self._hand_back(watch, suspect=False)
        self._tend(study.get_trials(deepcopy=False), began)
        return SearchEnd(
            interrupted=interrupted,
            out_of_time=not interrupted and self._n_finished < n_trials,
            stopped_slots=self._stopped(),
        )

    def _check_presence(self) -> None:
        """Leave at once where the study is gone; what its open files still say is no use."""
        if not has_study(self.paths):
            raise StorageError(f"{self.paths.folder}: holds no study any more.")

    def _begin(self, study: optuna.Study) -> None:
        """Remember what was there; the troubles of an earlier run are not those of this one."""
        before = study.get_trials(deepcopy=False)
        self._ended_before = frozenset(
            trial.number for trial in before if trial.state.is_finished()
        )
        if study.user_attrs.get(STOPPED_SLOTS):
            study.set_user_attr(STOPPED_SLOTS, [])

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

        A worker of ours may end its trial by itself, or has died and is to be reaped. A guest goes
        as soon as each other trial is known to be in living hands.
        """
        if any(place.process for place in self._places):
            return not self.deadline or self.deadline.overdue() < SECONDS_TO_STOP
        if self.deadline and self.deadline.too_late(trials, self.record.plan):
            return False
        if self.is_guest:
            return watch.n_doubtful(trials) > 0
        return any(trial.state == TrialState.RUNNING for trial in trials)

    def _start_missing(self, stop: Event, n_trials: int) -> None:
        """Start a worker in each place that wants one.

        Raises:
            SearchError: All slots are stopped.
        """
        stopped = self._stopped()
        if len(stopped) == len(self._places):
            raise SearchError(
                f"no slot is left: {'; '.join(each.sentence() for each in stopped)}; the log is "
                f"in {self.paths.log}."
            )
        for place in self._places:
            if place.wants_worker:
                order = WorkerOrder(
                    folder=self.paths.folder,
                    slot=place.slot,
                    environment=place.slot.environment,
                    n_trials=n_trials,
                    deadline=self.deadline,
                    images=self.record.store,
                )
                place.start(self._context, order, stop)

    def _reap(self, watch: OrphanWatch) -> None:
        """Take note of workers that ended; hand back what they were running."""
        if self._owes_trials or watch.is_time_to_look():
            self._hand_back(watch, suspect=True)
        for place in self._places:
            if place.process is None or place.process.is_alive():
                continue
            died_at = place.panel.trial_number
            excused = False
            if place.process.exitcode != 0 or died_at != NO_TRIAL:
                self._hand_back(watch, suspect=True)
                trials = watch.study.get_trials(deepcopy=False)
                excused = died_at != NO_TRIAL and trials[died_at].state == TrialState.FAIL
            self._note_end(watch.study, place, excused=excused)

    def _hand_back(self, watch: OrphanWatch, *, suspect: bool) -> None:
        """Hand back what nobody runs any more; on a full disk, at the next look, or next run."""
        try:
            watch.hand_back(suspect=suspect)
            self._owes_trials = False
        except DiskFullError as error:
            if not self._owes_trials:
                logger.warning("trials cannot be handed back yet: %s", error)
            self._owes_trials = True

    def _note_end(self, study: optuna.Study, place: Place, *, excused: bool) -> None:
        place.note_end(excused=excused)
        if place.stopped_because:
            self._show_stopped(study)

    def _end_silent(self, study: optuna.Study) -> None:
        """End workers that hang, and the trials that they hang in.

        Such a trial counts as pruned, as one that is out of time: the sampler learns from it, and
        it is not tried again.
        """
        now = time.monotonic()
        seconds = min(now - self._looked_at, MAX_SECONDS_OF_A_LOOK)
        self._looked_at = now
        for place in self._alive():
            silent, number = place.count_silence(seconds), place.panel.trial_number
            if silent < self._silence_limit(number) or place.process is None:
                continue
            reason = f"no sign of life for {silent:.0f} s, its worker was ended"
            logger.error("slot %d: trial %d: %s", place.slot.number, number, reason)
            place.process.kill()
            place.process.join(SECONDS_TO_STOP)
            if number != NO_TRIAL:
                self._prune(study, number, f"out of time: {reason}")
            self._note_end(study, place, excused=number != NO_TRIAL)

    def _silence_limit(self, trial_number: int) -> float:
        """Return for how many seconds a worker may show no sign of life."""
        low, high = SILENT_SECONDS
        expected = self.record.config.trial_timeout_seconds or self.record.plan.seconds
        if trial_number == NO_TRIAL or expected is None:
            return high
        return min(max(low, expected), high)

    def _prune(self, study: optuna.Study, trial_number: int, ending: str) -> None:
        """End a trial whose process is gone, unless it has ended meanwhile.

        On a full disk it cannot end; then it is handed back, like others whose process is gone.
        """
        try:
            with alone(study):
                trial = study.get_trials(deepcopy=False)[trial_number]
                if trial.state != TrialState.RUNNING:
                    return
                study._storage.set_trial_user_attr(trial._trial_id, "ending", ending)
                study.tell(trial_number, state=TrialState.PRUNED)
        except DiskFullError as error:
            logger.warning("trial %d cannot be ended, and is tried again: %s", trial_number, error)
            self._owes_trials = True
            return
        self.paths.trial(trial_number).checkpoint.unlink(missing_ok=True)

    def _look_at_ended(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        """Learn from the trials that ended in this run: which slots fail, and what fits.

        Raises:
            SearchError: No trial of this run got through, on no slot.
        """
        ended = self._ended_here(trials)
        self._refuse_hopeless(ended)
        for place in self._places:
            slot = place.slot.number
            reason = why_failing([each for each in ended if each.user_attrs.get("slot") == slot])
            if reason and not place.stopped_because:
                place.stop(reason)
                self._show_stopped(study)
        if self.record.config.slots_per_device == "auto":
            self._open_slots(measured_memory(ended))

    def _open_slots(self, measured: Mapping[int, MemoryUse]) -> None:
        """Open a place for each further trial that the GPUs have room for."""
        before = [place.slot for place in self._places]
        slots = share_out(before, measured, n_workers=self.record.config.workers)
        for place, slot in zip(self._places, slots, strict=False):
            place.change_share(slot)
        for slot in slots[len(before) :]:
            logger.info("slot %d opens: %s has room for it", slot.number, slot.device)
            self._places.append(Place(slot))

    def _ended_here(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials of this run; other hosts have slots of the same numbers."""
        me = this_process()
        new = [
            trial
            for trial in trials
            if trial.state.is_finished() and trial.number not in self._ended_before
        ]
        owners = [owner_of(trial.user_attrs) for trial in new]
        return [
            trial
            for trial, owner in zip(new, owners, strict=True)
            if owner is None or owner.shares_host(me)
        ]

    def _refuse_hopeless(self, ended: list[FrozenTrial]) -> None:
        """Give up when the trials of this run all failed, and not on one slot of several.

        Raises:
            SearchError: With the reason of the last one.
        """
        reason = why_failing(ended)
        slots = {trial.user_attrs.get("slot") for trial in ended}
        got_through = any(trial.state in FINISHED for trial in ended)
        if reason and not got_through and len(slots) >= min(2, len(self._places)):
            raise SearchError(f"{reason}.")

    def _show_stopped(self, study: optuna.Study) -> None:
        """Write into the study which slots are stopped, for `status` and the dashboard."""
        try:
            study.set_user_attr(STOPPED_SLOTS, [each.sentence() for each in self._stopped()])
        except DiskFullError as error:
            logger.warning("only this run's screen tells of the stopped slot: %s", error)

    def _stopped(self) -> tuple[StoppedSlot, ...]:
        return tuple(
            StoppedSlot(slot=place.slot, reason=place.stopped_because)
            for place in self._places
            if place.stopped_because
        )

    def _alive(self) -> list[Place]:
        return [place for place in self._places if place.is_alive]

    def _stop_all(self, stop: Event) -> None:
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
            n_slots=len(self._places),
            n_alive=len(self._alive()),
            seconds=time.monotonic() - began,
            seconds_left=self.deadline.left() if self.deadline else None,
            stopped_slots=self._stopped(),
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


def why_failing(ended: Sequence[FrozenTrial]) -> str:
    """Return why the newest trials all failed by themselves, or nothing if one did not.

    Those that somebody failed in the dashboard have no reason and do not count.
    """
    newest = ended[-MAX_FAILURES_IN_A_ROW:]
    if len(newest) < MAX_FAILURES_IN_A_ROW or not all(
        trial.state == TrialState.FAIL and "failure" in trial.user_attrs for trial in newest
    ):
        return ""
    return f"the last {len(newest)} trials all failed: {newest[-1].user_attrs['failure']}"

"""Trainings that are ordered after a search: other seeds, folds, a student of the ensemble.

They are the trials of a nested study: a folder inside the study's own, with the same layout and
its own database, whose trials are all enqueued. So workers, checkpoints, deadlines and
interruptions are those of a search, and what is ordered is run exactly once: a later call finds
it by the name of its order. One that was interrupted, or that the deadline ended, goes on from its
checkpoint when it is ordered again. The database is SQLite, wherever the trials of the search are
stored: they are trained by the host that builds the ensemble.

Use: make an `Order` for each training (`search.assignments`: a unique name, the parameters of a
trial, and an `Assignment`, whose length `planned_epochs` tells), then
`train_again(study, orders, kind="seeds", effort=Effort())`. Who needs another kind of training
adds a field to `Assignment` and reads it in `search.objective`, or in `Workplace.assigned`.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import optuna
from filelock import FileLock, Timeout
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ensembles.metrics import METRICS
from search.assignments import Order, by_order, order_name
from search.data.decoding import OnProgress
from search.devices import list_gpus, plan_slots
from search.errors import SearchError, StorageError
from search.location import has_study
from search.orphans import OrphanWatch
from search.paths import StudyPaths, written_whole
from search.preparation import with_images
from search.record import StudyRecord
from search.schedule import Deadline
from search.storage import alone, create_study, open_study
from search.study import Study
from search.supervisor import SearchEnd, Snapshot, Supervisor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Until when extra trainings run, who is told of them, and who may end them."""

    ends_at: float | None = None
    """`time.monotonic()` at which running ones are put aside; None: all are run to their ends."""
    on_change: Callable[[Snapshot], None] = lambda _: None
    """Told a snapshot several times a second."""
    on_decode: OnProgress | None = None
    """Told how many images are decoded, of how many, where they are gone; may raise to end it."""
    stop_requested: Callable[[], bool] = lambda: False
    """Asked several times a second; when true, running trainings are put aside."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What became of some orders."""

    study: Study
    """The nested study, for files and records."""
    trials: Mapping[str, FrozenTrial]
    """Those that ended well, by the names of their orders."""
    failures: Mapping[str, str]
    """Why others ended otherwise, by the names of their orders."""
    n_missing: int
    """Orders that were not begun, or were put aside."""
    end: SearchEnd


def train_again(study: Study, orders: Sequence[Order], *, kind: str, effort: Effort) -> Trained:
    """Run ordered trainings, or find those that were run before.

    Args:
        study: A study with finished trials.
        orders: What shall be trained; in this order, where time is short.
        kind: Name of the nested study, and of its folder. What an earlier call ordered under it
            and did not finish is not run if it is not ordered again.
        effort: Time, and who is told.

    Returns:
        The trainings that are there now. An order that failed by itself, by a loss that is not
        finite for example, is not run again; one whose process died is.

    Raises:
        SearchError: Another process is at it, or the trainings fail again and again.
        DataError: The images of the study are gone.
    """
    paths = study.paths.nested(kind)
    with _alone(paths, study.name):
        record = _record_of(study, paths, kind, effort)
        opened = _open(paths, record)
        _enqueue(opened, paths, orders)
        n_trials = max(1, sum(_is_ordered(trial) for trial in opened.get_trials(deepcopy=False)))
        config = record.config.replaced(trials=n_trials, keep=n_trials)
        record = record.model_copy(update={"config": config})
        for key, value in record.attributes().items():
            opened.set_user_attr(key, value)
        end = _run(paths, record, effort)
    return _collect(Study(paths=paths, record=record), orders, end)


def planned_epochs(study: Study, trial: FrozenTrial) -> float:
    """Return the length of a trial's schedule, in passes through the train role.

    That of a trial that ended early is the length that it would have had.

    Raises:
        StorageError: The trial left no scores.
    """
    path = study.paths.trial(trial.number).history
    try:
        newest = json.loads(path.read_text(encoding="utf-8"))[-1]
        share = newest["round"] / study.record.plan.n_rounds
        return float(newest["images_seen"] / share / study.record.role_sizes["train"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StorageError(f"{path}: the scores of a trial cannot be read: {error}.") from error


def expected_seconds(study: Study, trial: FrozenTrial) -> float:
    """Return what a trial took, or would have taken had it not ended early."""
    n_rounds = max(1, len(trial.intermediate_values))
    return float(trial.user_attrs["seconds"]) * study.record.plan.n_rounds / n_rounds


@contextmanager
def _alone(paths: StudyPaths, name: str) -> Iterator[None]:
    """Hold the exclusive lock of the nested study."""
    paths.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(paths.supervisor_lock)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SearchError(
            f"another process is training the {paths.name} of study {name!r}; wait until it ends."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _record_of(study: Study, paths: StudyPaths, kind: str, effort: Effort) -> StudyRecord:
    """Return the record of the nested study: nothing is sampled, pruned, freed or cut."""
    study.record.check_space()
    store = with_images(study, effort.on_decode).record.store
    with written_whole(paths.roles) as temporary:
        shutil.copyfile(study.paths.roles, temporary)
    config = study.record.config.replaced(
        name=f"{kind}-of-{study.name}"[:64],
        sampler="random",
        pruner="none",
        snapshots=0,
        budget=None,
        trial_budget=None,
        trial_timeout=None,
    )
    plan = replace(study.record.plan, seconds=None)
    changes = {"config": config, "plan": plan, "store": store, "ordered": True}
    return study.record.model_copy(update=changes)


def _open(paths: StudyPaths, record: StudyRecord) -> optuna.Study:
    if not has_study(paths):
        rises = METRICS[record.config.metric].higher_is_better
        create_study(
            paths,
            StudyDirection.MAXIMIZE if rises else StudyDirection.MINIMIZE,
            metric=record.config.metric,
            attributes=record.attributes(),
            first_trials=(),
        )
    return open_study(paths)


def _enqueue(opened: optuna.Study, paths: StudyPaths, orders: Sequence[Order]) -> None:
    """Add the orders that are new, and withdraw those that wait and are not wanted any more."""
    wanted = {order.name for order in orders}
    OrphanWatch(opened).hand_back(suspect=False)
    with alone(opened):
        trials = [trial for trial in opened.get_trials(deepcopy=False) if _is_ordered(trial)]
        for trial in trials:
            if trial.state == TrialState.WAITING and order_name(trial) not in wanted:
                opened._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                paths.trial(trial.number).checkpoint.unlink(missing_ok=True)
        known = {order_name(trial) for trial in trials}
        for order in orders:
            if order.name not in known:
                opened.enqueue_trial(dict(order.parameters), user_attrs=order.user_attrs)


def _is_ordered(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.FAIL


def _run(paths: StudyPaths, record: StudyRecord, effort: Effort) -> SearchEnd:
    config = record.config
    slots = plan_slots(
        config.devices,
        config.workers,
        gpus=list_gpus(config.devices),
        slots_per_device=config.slots_per_device,
    )
    deadline = effort.ends_at and Deadline(
        at=effort.ends_at, n_trials=config.trials, n_workers=len(slots)
    )
    return Supervisor(
        paths=paths,
        record=record,
        slots=slots,
        deadline=deadline or None,
        on_change=effort.on_change,
        stop_requested=effort.stop_requested,
    ).run()


def _collect(nested: Study, orders: Sequence[Order], end: SearchEnd) -> Trained:
    wanted = {order.name for order in orders}
    newest = {order_name(trial): trial for trial in nested.trials()}
    trials = {name: trial for name, trial in by_order(newest.values()).items() if name in wanted}
    failures = {
        name: trial.user_attrs.get("ending") or trial.user_attrs.get("failure", "failed")
        for name, trial in newest.items()
        if name in wanted and trial.state in (TrialState.PRUNED, TrialState.FAIL)
    }
    for name, reason in failures.items():
        logger.warning("%s: %s", name, reason)
    n_missing = len(wanted) - len(trials) - len(failures)
    return Trained(study=nested, trials=trials, failures=failures, n_missing=n_missing, end=end)

"""One run from beginning to end: make the study or go on with it, search, build the ensemble."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from filelock import FileLock, Timeout

from ensembles.errors import EnsembleError
from search.cleaning import Wish, clean_study
from search.config import StudyConfig, continued
from search.curve_points import CurvePoint
from search.data.decoding import OnProgress
from search.devices import list_gpus, plan_slots
from search.disk import format_bytes, free_bytes
from search.ensemble_curve import EnsembleCurve
from search.ensembling import EnsembleResult, build_ensemble, read_ensemble
from search.errors import ConfigError, SearchError
from search.extra_trainings import Effort, Trained
from search.location import has_study, note_location, settle_location
from search.logs import logged_to_file
from search.orders import train_what_is_asked
from search.paths import DEFAULT_STUDIES, StudyPaths
from search.preparation import (
    bounded_by_grid,
    make_study,
    with_images,
    write_config,
)
from search.record import StudyRecord, read_record
from search.room import (
    RESERVE_BYTES,
    forecast_bytes,
    is_paused,
    needed_bytes,
    pause_sentence,
    wait_for_room,
)
from search.schedule import search_deadline, training_end
from search.storage import open_study
from search.study import Study
from search.supervisor import SearchEnd, Snapshot, Supervisor
from spaces.known import known_parameters
from spaces.networks.builders import build_network
from spaces.space import suggest_recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Observer:
    """What wants to know how a run goes, and may end it."""

    on_change: Callable[[Snapshot], None] = lambda _: None
    """Told a snapshot several times a second."""
    on_ensemble: Callable[[CurvePoint], None] = lambda _: None
    """Told how good the ensemble of what is finished is, each time it was refitted."""
    on_shortage: Callable[[str], None] = lambda _: None
    """Told several times a second why the search waits for room on the disk; empty if it does not.
    """
    on_warning: Callable[[str], None] = lambda _: None
    """Told what may go wrong later."""
    on_decode: OnProgress | None = None
    """Told at least twice a second how many images are decoded, of how many; what it raises ends
    the decoding.
    """
    stop_requested: Callable[[], bool] = lambda: False
    """Asked several times a second; when true, running trials are handed back."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one `run` did."""

    study: Study
    end: SearchEnd
    extras: tuple[Trained, ...]
    """What was trained again after the search."""
    ensemble: EnsembleResult | None
    """None when the run was interrupted or no trial left predictions."""
    seconds: float


def run_study(
    config: StudyConfig,
    *,
    studies: Path = DEFAULT_STUDIES,
    observer: Observer | None = None,
) -> RunResult:
    """Make a study or go on with it, run its trials, and build its ensemble.

    A script that calls this needs the usual `if __name__ == "__main__":`, since workers are
    processes.

    Args:
        config: What to search; of an existing study, only what may change is taken.
        studies: Folder of studies.
        observer: Who is told, and may end it.

    Returns:
        The study, how the search ended, and the ensemble.

    Raises:
        ConfigError: The configuration or the data cannot be used.
        SearchError: Another run is on the study, or its trials fail again and again.
    """
    started = time.monotonic()
    observer = observer or Observer()
    paths = StudyPaths(studies / config.study_name)
    with _alone(paths) as keep, logged_to_file(paths.log):
        study = _made_or_continued(paths, config, studies, observer)
        keep()
        end = _search(study, started, observer)
        clean_study(study, Wish())  # what killed workers left behind
        if not end.interrupted and not _wait_for_room(study, observer):
            end = replace(end, interrupted=True)
        extras = [] if end.interrupted else _train_extras(study, started, observer)
        if any(each.end.interrupted for each in extras):
            end = replace(end, interrupted=True)
        if not end.interrupted:  # somebody may have freed them meanwhile
            study = with_images(study, observer.on_decode)
        ensemble = None if end.interrupted else _newest_ensemble(study, config, extras)
    return RunResult(
        study=study,
        end=end,
        extras=tuple(extras),
        ensemble=ensemble,
        seconds=time.monotonic() - started,
    )


@contextmanager
def _alone(paths: StudyPaths) -> Iterator[Callable[[], None]]:
    """Hold the study's exclusive lock, so that no second run works on it.

    Give what is called once the study is made: until then, nothing of a new one is left behind.
    From then on nothing is removed, even if somebody moves its database away meanwhile.
    """
    new = not paths.folder.exists()
    made = threading.Event()
    lock = FileLock(paths.supervisor_lock)
    try:
        paths.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SearchError(
            f"another run is working on study {paths.name!r}; `python -m search status` shows "
            "it, and --name starts another study."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{paths.folder}: cannot be written: {error.strerror or error}; --studies names "
            "another folder."
        ) from error
    try:
        yield made.set
    finally:
        lock.release()
        if new and not made.is_set() and not has_study(paths):
            _remove_traces(paths)


def _remove_traces(paths: StudyPaths) -> None:
    """Leave nothing of a study that could not be made; one that has trials was made."""
    if paths.trials.exists():
        return
    for path in (paths.supervisor_lock, paths.trial_lock, paths.log, paths.roles, paths.config):
        path.unlink(missing_ok=True)
    if not any(paths.folder.iterdir()):
        paths.folder.rmdir()


def _made_or_continued(
    paths: StudyPaths, config: StudyConfig, studies: Path, observer: Observer
) -> Study:
    location = settle_location(paths, config.storage)
    if has_study(paths):
        note_location(paths, location)  # with another password, perhaps
    else:
        make_study(paths, config, studies, observer.on_decode)
    opened = open_study(paths)
    record = read_record(opened)
    record.check_space()
    going_on = bounded_by_grid(continued(record.config, config), record.space, record.task)
    study = with_images(Study(paths=paths, record=record), observer.on_decode)
    record = study.record.model_copy(update={"config": going_on})
    write_config(paths, going_on)
    for key, value in record.attributes().items():
        opened.set_user_attr(key, value)
    return Study(paths=paths, record=record)


def _train_extras(study: Study, started: float, observer: Observer) -> list[Trained]:
    def on_change(snapshot: Snapshot) -> None:
        tell_shortage(study, snapshot, observer)
        observer.on_change(snapshot)

    effort = Effort(
        ends_at=training_end(study.record.config, started=started),
        on_change=on_change,
        on_decode=observer.on_decode,
        stop_requested=observer.stop_requested,
    )
    return train_what_is_asked(study, effort)


def tell_shortage(study: Study, snapshot: Snapshot, observer: Observer) -> None:
    """Tell an observer whether the workers of this study wait for room on the disk."""
    needed = needed_bytes(study.record, snapshot.trials)
    observer.on_shortage(pause_sentence(study.paths, needed) if is_paused(study.paths) else "")


def _wait_for_room(study: Study, observer: Observer) -> bool:
    """Wait until an ensemble can be written; return False if somebody asks to stop instead."""

    def stopping() -> bool:
        observer.on_shortage(pause_sentence(study.paths, RESERVE_BYTES))
        return observer.stop_requested()

    has_room = wait_for_room(study.paths, RESERVE_BYTES, stopping)
    observer.on_shortage("")
    return has_room


def _newest_ensemble(
    study: Study, config: StudyConfig, extras: Sequence[Trained]
) -> EnsembleResult | None:
    """Build the ensemble, unless the one that is there knows all trials.

    Another look at the test role is not taken, nor counted, where it could show nothing new.
    """
    ends = [
        trial.datetime_complete.timestamp()
        for trial in study.trials()
        if "log_loss" in trial.user_attrs and trial.datetime_complete
    ]
    if not ends:
        return None
    ends += [
        trial.datetime_complete.timestamp()
        for each in extras
        for trial in each.trials.values()
        if trial.datetime_complete
    ]
    built = study.paths.ensemble.stat().st_mtime if study.paths.ensemble.is_file() else 0.0
    if built > max(ends) and "max_members" not in config.model_fields_set:
        newest = read_ensemble(study.paths)
        if study.record.config.folds in (None, newest.n_folds):
            return newest
    try:
        return build_ensemble(study)
    except EnsembleError as error:  # nothing that a user gave to a run is at fault
        raise SearchError(str(error)) from error


def _search(study: Study, started: float, observer: Observer) -> SearchEnd:
    config = study.record.config
    slots = plan_slots(
        config.devices,
        config.workers,
        gpus=list_gpus(config.devices),
        slots_per_device=config.slots_per_device,
    )
    curve = EnsembleCurve(study=study, on_point=observer.on_ensemble)
    _warn_of_shortage(study, observer, n_workers=len(slots))

    def on_change(snapshot: Snapshot) -> None:
        tell_shortage(study, snapshot, observer)
        observer.on_change(snapshot)
        curve.update(snapshot.trials)

    end = Supervisor(
        paths=study.paths,
        record=study.record,
        slots=slots,
        deadline=search_deadline(config, started=started, n_workers=len(slots)),
        on_change=on_change,
        stop_requested=observer.stop_requested,
    ).run()
    curve.update(study.trials(), at_the_end=True)
    return end


def _warn_of_shortage(study: Study, observer: Observer, *, n_workers: int) -> None:
    """Say before the search begins if the disk is too small for all of it."""
    record, folder = study.record, study.paths.folder
    with contextlib.suppress(OSError):  # a full disk is met, and told, later
        study.paths.pause_lock.touch()
    needed = forecast_bytes(
        record, study.trials(), n_workers=n_workers, n_parameters=_usual_parameters(record)
    )
    free = free_bytes(folder)
    if free < needed + RESERVE_BYTES:
        observer.on_warning(
            f"the disk of {folder} may be too small: {format_bytes(free)} free, the study will "
            f"need about {format_bytes(needed + RESERVE_BYTES)}; a lower --keep needs less, and "
            "the search waits where there is no room"
        )


def _usual_parameters(record: StudyRecord) -> int:
    """Return the weights of the first of the good first configurations."""
    prompter = optuna.trial.FixedTrial(known_parameters(record.space, record.task)[0])
    recipe = suggest_recipe(prompter, record.space, record.task)
    network = build_network(recipe.architecture, record.task)
    return sum(parameter.numel() for parameter in network.parameters())

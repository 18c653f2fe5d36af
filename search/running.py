"""One run from beginning to end: make the study or go on with it, search, build the ensemble."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from search.config import StudyConfig, continued
from search.curve_points import CurvePoint
from search.devices import count_gpus, plan_slots
from search.ensemble_curve import EnsembleCurve
from search.ensembling import EnsembleResult, build_ensemble, read_ensemble
from search.errors import ConfigError, SearchError
from search.location import has_study, note_location, settle_location
from search.logs import logged_to
from search.paths import DEFAULT_STUDIES, StudyPaths
from search.preparation import (
    OnProgress,
    bounded_by_grid,
    make_study,
    restore_images,
    write_config,
)
from search.record import read_record
from search.schedule import search_deadline
from search.storage import open_study
from search.study import Study
from search.supervisor import SearchEnd, Snapshot, Supervisor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Observer:
    """What wants to know how a run goes, and may end it."""

    on_change: Callable[[Snapshot], None] = lambda _: None
    """Told a snapshot several times a second."""
    on_ensemble: Callable[[CurvePoint], None] = lambda _: None
    """Told how good the ensemble of what is finished is, each time it was refitted."""
    on_decode: OnProgress | None = None
    """Told how many images are decoded, of how many."""
    stop_requested: Callable[[], bool] = lambda: False
    """Asked several times a second; when true, running trials are handed back."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one `run` did."""

    study: Study
    end: SearchEnd
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
    started = time.time()
    observer = observer or Observer()
    paths = StudyPaths(studies / config.study_name)
    with _alone(paths), logged_to(paths.log):
        study = _made_or_continued(paths, config, studies, observer)
        end = _search(study, started, observer)
        ensemble = None if end.interrupted else _newest_ensemble(study, config)
    return RunResult(study=study, end=end, ensemble=ensemble, seconds=time.time() - started)


@contextmanager
def _alone(paths: StudyPaths) -> Iterator[None]:
    """Hold the study's exclusive lock, so that no second run works on it."""
    new = not paths.folder.exists()
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
        yield
    finally:
        lock.release()
        if new and not has_study(paths):
            _remove_traces(paths)


def _remove_traces(paths: StudyPaths) -> None:
    """Leave nothing of a study that could not be made."""
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
    study = open_study(paths)
    record = read_record(study)
    record.check_space()
    going_on = bounded_by_grid(continued(record.config, config), record.space, record.task)
    store = restore_images(paths, record, studies, observer.on_decode)
    record = record.model_copy(update={"config": going_on, "store": store})
    write_config(paths, going_on)
    for key, value in record.attributes().items():
        study.set_user_attr(key, value)
    return Study(paths=paths, record=record)


def _newest_ensemble(study: Study, config: StudyConfig) -> EnsembleResult | None:
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
    built = study.paths.ensemble.stat().st_mtime if study.paths.ensemble.is_file() else 0.0
    if built > max(ends) and "max_members" not in config.model_fields_set:
        return read_ensemble(study.paths)
    return build_ensemble(study)


def _search(study: Study, started: float, observer: Observer) -> SearchEnd:
    config = study.record.config
    slots = plan_slots(config.devices, config.workers, n_gpus=count_gpus(config.devices))
    curve = EnsembleCurve(study=study, on_point=observer.on_ensemble)

    def on_change(snapshot: Snapshot) -> None:
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

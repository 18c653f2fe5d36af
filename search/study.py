"""Studies on the disk: finding them, opening them, reading their trials."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from ensembles.metrics import METRICS
from search.config import check_name
from search.database import count_states, read_all, read_attributes, read_best
from search.drivers import is_frozen
from search.errors import ConfigError, NothingToDoError
from search.location import has_study, location_of
from search.paths import DEFAULT_STUDIES, StudyPaths
from search.record import StudyRecord, record_of
from search.trials import TrialCounts, name_counts, ranked


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study on the disk."""

    paths: StudyPaths
    record: StudyRecord

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.paths.name

    def told(self, **changes: object) -> "Study":
        """Return the study with other settings, which are not written down."""
        config = self.record.config.replaced(**changes)
        return replace(self, record=self.record.model_copy(update={"config": config}))

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, by number."""
        if is_frozen(location_of(self.paths)):  # where Optuna would want to write
            return read_all(self.paths)
        return self._opened.get_trials(deepcopy=False)

    @cached_property
    def _opened(self) -> optuna.Study:
        """The study with its cache of finished trials."""
        from search.storage import open_study  # noqa: PLC0415  # SQLAlchemy takes half a second

        return open_study(self.paths)

    def nested(self, kind: str) -> "Study | None":
        """Return the study of trainings that were ordered after the search, if there is one."""
        paths = self.paths.nested(kind)
        if not has_study(paths):
            return None
        return Study(paths=paths, record=record_of(paths.name, read_attributes(paths)))

    def counts(self) -> TrialCounts:
        """Return how many trials are in which state."""
        return name_counts(count_states(self.paths))

    def best(self) -> FrozenTrial | None:
        """Return the best complete trial, without reading the others."""
        rises = METRICS[self.record.config.metric].higher_is_better
        return read_best(self.paths, rises=rises)

    def leaders(self) -> list[FrozenTrial]:
        """Return the complete trials, best first."""
        rises = METRICS[self.record.config.metric].higher_is_better
        return ranked(self.trials(), rises=rises)


def load_study(name: str | None = None, *, studies: Path = DEFAULT_STUDIES) -> Study:
    """Open a study that is there.

    Args:
        name: Its name; default: the one that was worked on last.
        studies: Folder of studies.

    Raises:
        ConfigError: No study can have that name.
        NothingToDoError: There is none, or none of that name.
        StorageError: Its database cannot be read.
    """
    paths = _newest(studies) if name is None else study_paths(name, studies)
    return Study(paths=paths, record=record_of(paths.name, read_attributes(paths)))


def study_paths(name: str, studies: Path) -> StudyPaths:
    """Return the files of a study of that name, whether it is there or not.

    Raises:
        ConfigError: No study can have that name.
    """
    check_name(name)
    return StudyPaths(studies / name)


def list_studies(studies: Path = DEFAULT_STUDIES) -> list[StudyPaths]:
    """Return the studies of a folder, the one that was worked on last first.

    Raises:
        ConfigError: It is no folder.
    """
    if studies.exists() and not studies.is_dir():
        raise ConfigError(f"{studies}: not a folder; --studies names the folder of studies.")
    found = [StudyPaths(path) for path in studies.glob("*") if has_study(StudyPaths(path))]
    return sorted(found, key=_worked_on, reverse=True)


def no_study(studies: Path) -> NothingToDoError:
    """Return the error that says that a folder has no study."""
    return NothingToDoError(
        f"there is no study in {studies} yet; `python -m search run` makes one."
    )


def _newest(studies: Path) -> StudyPaths:
    found = list_studies(studies)
    if not found:
        raise no_study(studies)
    return found[0]


def _worked_on(paths: StudyPaths) -> float:
    wal = paths.database.with_name(f"{paths.database.name}-wal")
    files = (paths.database, wal, paths.storage_note, paths.log)
    return max(file.stat().st_mtime for file in files if file.exists())

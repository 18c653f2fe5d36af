"""The one module that knows the names of a study's files."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from search.disk import format_bytes, free_bytes, is_full
from search.errors import DiskFullError

DEFAULT_STUDIES = Path("studies")
SEEDS = "seeds"
"""The kind of the nested study that trains the best recipe with other seeds."""


def folds_kind(n_folds: int) -> str:
    """Return the kind of the nested study that trains on folds."""
    return f"folds-{n_folds}"


@dataclass(frozen=True)
class TrialPaths:
    """The files of one trial, or of one network beside its best: they have the same names."""

    folder: Path

    def predictions(self, role: str) -> Path:
        """Log-probabilities for the images of one role, float32, (images, classes)."""
        return self.folder / f"{role}.npy"

    @property
    def weights(self) -> Path:
        """Weights of the best checkpoint; only for the trials that are kept."""
        return self.folder / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Everything to go on from the last round; only while the trial is not finished."""
        return self.folder / "checkpoint.pt"

    @property
    def history(self) -> Path:
        """Scores of each round, as JSON."""
        return self.folder / "history.json"

    @property
    def snapshots(self) -> Path:
        """Folder of the weights that were kept besides those of the best round."""
        return self.folder / "snapshots"

    def snapshot(self, name: str) -> "TrialPaths":
        """Return weights and predictions of one snapshot, named by its round, or `raw`."""
        return TrialPaths(self.snapshots / name)


@dataclass(frozen=True)
class StudyPaths:
    """The files of one study."""

    folder: Path

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.folder.name

    @property
    def database(self) -> Path:
        """Optuna's SQLite database: which trials there are, and which of them are finished."""
        return self.folder / "study.db"

    @property
    def storage_note(self) -> Path:
        """URL of the server that has the study's trials; only where it is not SQLite."""
        return self.folder / "storage.url"

    @property
    def trial_lock(self) -> Path:
        """Held while a trial is asked for or its state changes."""
        return self.folder / "study.db.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the one `run` that works on the study."""
        return self.folder / "supervisor.lock"

    @property
    def pause_lock(self) -> Path:
        """Shared by the workers that wait for room on the disk."""
        return self.folder / "pause.lock"

    @property
    def config(self) -> Path:
        """The resolved configuration, for people; the study itself holds the same."""
        return self.folder / "config.json"

    @property
    def roles(self) -> Path:
        """Which image plays which role."""
        return self.folder / "roles.npz"

    @property
    def log(self) -> Path:
        """What happened, one JSON document a line."""
        return self.folder / "log.jsonl"

    @property
    def ensemble(self) -> Path:
        """The newest ensemble and its report."""
        return self.folder / "ensemble.json"

    @property
    def ensemble_curve(self) -> Path:
        """How good the ensemble was as trials ended."""
        return self.folder / "ensemble_curve.json"

    @property
    def costs(self) -> Path:
        """Measured time, parameters and bytes of the candidates, as JSON."""
        return self.folder / "costs.json"

    @property
    def artifacts(self) -> Path:
        """Small files that the dashboard shows."""
        return self.folder / "artifacts"

    @property
    def soups(self) -> Path:
        """What became of each trial whose weights were to be averaged, as JSON."""
        return self.folder / "soups" / "soups.json"

    def soup(self, name: str) -> TrialPaths:
        """Return weights and predictions of one average of weights."""
        return TrialPaths(self.folder / "soups" / name)

    @property
    def folds(self) -> Path:
        """Which image lies in which fold, where trainings are ordered by folds."""
        return self.folder / "folds.npy"

    def nested(self, kind: str) -> "StudyPaths":
        """Return the files of the trainings that were ordered after the search."""
        return StudyPaths(self.folder / kind)

    def teacher(self, name: str) -> Path:
        """Return the bundle of an ensemble that students learn from."""
        return self.folder / "teachers" / name

    def result(self, name: str) -> Path:
        """Return what was found of some ordered trainings, as JSON."""
        return self.folder / "results" / f"{name}.json"

    @property
    def trials(self) -> Path:
        """Folder of the files of all trials."""
        return self.folder / "trials"

    def trial(self, trial_number: int) -> TrialPaths:
        """Return the files of one trial."""
        return TrialPaths(self.trials / f"{trial_number:05d}")


def cache_folder(studies: Path) -> Path:
    """Return the folder of decoded images, shared by all studies."""
    return studies / ".cache"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place when the block ends well.

    A file that exists under its own name is whole: it is written under another name in the same
    folder, flushed to the disk and renamed.

    Raises:
        DiskFullError: There is no room for it; what was there before is there still.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if is_full(error, path.parent):
            free = format_bytes(free_bytes(_nearest_folder(path)))
            raise DiskFullError(
                f"{path}: no room left on the disk ({free} free); `python -m search clean` frees "
                "what no study needs."
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that one that exists under its own name is whole.

    What a library writes into a file itself it also explains itself: NumPy, torch and safetensors
    each have a text of their own for a full disk. Hence bytes.

    Raises:
        DiskFullError: There is no room for it; what was there before is there still.
    """
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(content)


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in path.absolute().parents if folder.is_dir())

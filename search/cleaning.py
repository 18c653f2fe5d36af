"""What studies hold on the disk, by kind, and what of it can go.

By itself only what nobody needs goes: files that a killed process had not finished, checkpoints
and superfluous weights of trials that have ended, decoded images that no study has. That is safe
while a search runs, since what has ended stays so. A lower `keep` and dropped predictions are for
studies that nobody works on: a search would miss them. Nothing goes that the newest ensembles are
made of.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from search.candidate_names import trial_of
from search.errors import SearchError
from search.location import Server, has_study, location_of
from search.paths import StudyPaths, cache_folder
from search.retention import kept_trials
from search.selections import selected_names
from search.study import Study, list_studies, load_study

SECONDS_OF_PEACE = 60.0
"""For which a temporary file must lie untouched: its process may be one of another machine."""
_OTHER = ("other files", False)
_TEMPORARY = re.compile(r"\..+\.(\d+)-\d+\.tmp")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What shall go besides what nobody needs."""

    keep: int | None = None
    """Trials whose weights stay; None: as the study was told."""
    predictions: bool = False
    """Whether the predictions of trials without weights go too."""
    dry_run: bool = False
    """Whether nothing shall go at all."""


@dataclass(frozen=True, kw_only=True)
class Holding:
    """The files of one kind."""

    kind: str
    n_files: int
    n_bytes: int
    goes: bool
    """Whether they were freed; of a dry run, whether they would have been."""


def clean_study(study: Study, wish: Wish) -> list[Holding]:
    """Free what a study does not need, and tell what it held.

    Args:
        study: The study; a run may be on it.
        wish: What shall go.

    Returns:
        The files of the study's folder, by kind.

    Raises:
        SearchError: A run is on the study, and would miss what shall go.
    """
    with _undisturbed(study.paths, wish):
        sorter = _sorter(study, wish)
        found = []
        for file, n_bytes in _files(study.paths.folder):
            kind, goes = sorter.kind_of(file)
            found.append(Holding(kind=kind, n_files=1, n_bytes=n_bytes, goes=goes))
            if goes and not wish.dry_run:
                file.unlink(missing_ok=True)
    return _summed(found)


def clean_cache(studies: Path, wish: Wish) -> list[Holding]:
    """Free the decoded images that no study of a folder has, and tell what there were.

    All stay where a study cannot be read or is just being made: it may need any of them.

    Args:
        studies: Folder of studies.
        wish: Whether anything shall go.
    """
    used, root = _used_stores(studies), cache_folder(studies)
    found = []
    for folder in sorted(each for each in root.glob("*") if each.is_dir()):
        sizes = [n_bytes for _, n_bytes in _files(folder)]
        goes = used is not None and folder.resolve() not in used and _free_folder(folder, wish)
        kind = "decoded images of no study" if goes else "decoded images"
        found.append(Holding(kind=kind, n_files=len(sizes), n_bytes=sum(sizes), goes=goes))
    return _summed(found)


def _undisturbed(paths: StudyPaths, wish: Wish) -> AbstractContextManager[object]:
    """Keep runs off the study where they would miss what goes.

    Raises:
        SearchError: One is on it.
    """
    if wish.dry_run or (wish.keep is None and not wish.predictions):
        return contextlib.nullcontext()
    try:
        return FileLock(paths.supervisor_lock).acquire(timeout=0)
    except Timeout as error:
        raise SearchError(
            f"a run is working on study {paths.name!r}, which needs its weights and predictions; "
            "without --keep and --predictions, `python -m search clean` is safe now."
        ) from error


def _sorter(study: Study, wish: Wish) -> "_Sorter":
    trials, config = study.trials(), study.record.config
    ended = {trial.number for trial in trials if trial.state.is_finished()}
    kept = {trial.number for trial in kept_trials(trials, wish.keep or config.keep, config.metric)}
    members = {trial_of(name) for name in selected_names(study.paths)}
    return _Sorter(
        paths=study.paths,
        ended=frozenset(ended),
        spare=frozenset(ended - kept - members),
        drops_predictions=wish.predictions,
    )


@dataclass(frozen=True, kw_only=True)
class _Sorter:
    """Tells the kind of each file of a study, and whether it goes."""

    paths: StudyPaths
    ended: frozenset[int]
    """Trials that will not be run again."""
    spare: frozenset[int]
    """Those of them whose networks are neither kept nor in an ensemble."""
    drops_predictions: bool

    def kind_of(self, file: Path) -> tuple[str, bool]:
        """Return the kind of a file, and whether it goes."""
        if _TEMPORARY.fullmatch(file.name):
            return ("unfinished files", True) if _is_left_behind(file) else _OTHER
        return self._kind_at(file.relative_to(self.paths.folder).parts)

    def _kind_at(self, place: tuple[str, ...]) -> tuple[str, bool]:
        match place:
            case ("trials", number, *rest) if rest and number.isdecimal():
                return self._kind_in_trial(int(number), rest)
            case ("soups", name, _):
                return _marked("averages of weights", is_spare=trial_of(name) in self.spare)
            case ("artifacts", *_):
                return "pictures", False
            case (name,) if name.startswith(self.paths.database.stem):  # its copies too
                return "database", False
            case (_, _, *_):
                return "ordered trainings", False
        return _OTHER

    def _kind_in_trial(self, number: int, place: list[str]) -> tuple[str, bool]:
        is_spare = number in self.spare
        if place[0] == "snapshots":
            return _marked("snapshots", is_spare=is_spare)
        if place[0] == "weights.safetensors":
            return _marked("weights", is_spare=is_spare)
        if place[0] == "checkpoint.pt":
            has_ended = number in self.ended
            return f"checkpoints{' of trials that have ended' if has_ended else ''}", has_ended
        if place[0].endswith(".npy"):
            kind, _ = _marked("predictions", is_spare=is_spare)
            return kind, is_spare and self.drops_predictions
        return _OTHER


def _marked(kind: str, *, is_spare: bool) -> tuple[str, bool]:
    return f"{kind}{' of trials that are not kept' if is_spare else ''}", is_spare


def _is_left_behind(file: Path) -> bool:
    """Tell whether nobody writes a temporary file any more."""
    found = _TEMPORARY.fullmatch(file.name)
    with contextlib.suppress(OSError):
        if found and time.time() - file.stat().st_mtime > SECONDS_OF_PEACE:
            return not _is_alive(int(found[1]))
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


def _used_stores(studies: Path) -> set[Path] | None:
    """Return the folders of decoded images that studies have; None if that cannot be known."""
    used = set()
    for paths in list_studies(studies):
        try:
            if isinstance(location_of(paths), Server) and not paths.config.is_file():
                return None  # of a host that joined: where its images are, no study says
            used.add(load_study(paths.name, studies=studies).record.store.resolve())
        except SearchError:
            return None
    being_made = (
        lock
        for lock in studies.glob("*/supervisor.lock")
        if not has_study(StudyPaths(lock.parent)) and _is_held(lock)
    )
    return None if any(being_made) else used


def _is_held(lock: Path) -> bool:
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _free_folder(folder: Path, wish: Wish) -> bool:
    """Remove a folder of decoded images, unless somebody is at it; return whether it goes."""
    try:
        with FileLock(folder.with_suffix(".lock")).acquire(timeout=0):
            if not wish.dry_run:
                shutil.rmtree(folder, ignore_errors=True)
            return True
    except Timeout:
        return False


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Iterate over all files of a folder and their bytes; one that has gone meanwhile is none."""
    for file in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            if file.is_file():
                yield file, file.stat().st_size


def _summed(found: Sequence[Holding]) -> list[Holding]:
    """Return one holding of each kind."""
    kinds = sorted({(each.kind, each.goes) for each in found})
    alike = [[each for each in found if (each.kind, each.goes) == kind] for kind in kinds]
    return [
        Holding(
            kind=kind,
            n_files=sum(each.n_files for each in group),
            n_bytes=sum(each.n_bytes for each in group),
            goes=goes,
        )
        for (kind, goes), group in zip(kinds, alike, strict=True)
    ]

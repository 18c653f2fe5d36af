"""What `status`, `best`, `list` and `clean` say, as JSON values; every document has a `schema`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from search.cleaning import Wish, clean_cache, clean_study
from search.curve_points import read_curve
from search.database import read_attributes
from search.disk import free_bytes
from search.drivers import is_frozen
from search.errors import NothingToDoError, SearchError, StorageError
from search.location import location_of
from search.paths import StudyPaths
from search.record import STOPPED_SLOTS
from search.study import Study, list_studies, load_study, no_study, study_paths
from search.trials import trial_row

SCHEMA = 1
Document: TypeAlias = dict[str, Any]


def status_document(study: Study) -> Document:
    """Return how far a study is."""
    counts, best, record = study.counts(), study.best(), study.record
    curve = read_curve(study.paths)
    return {
        "schema": SCHEMA,
        "study": study.name,
        "active": _is_active(study.paths),
        "trials": record.config.trials,
        "finished": counts.finished,
        **asdict(counts),
        "data": record.config.data,
        "images": ", ".join(f"{role} {count:,}" for role, count in record.role_sizes.items()),
        "classes": len(record.class_names),
        "skipped": record.skipped,
        "stopped_slots": read_attributes(study.paths).get(STOPPED_SLOTS, []),
        "best": asdict(trial_row(best)) if best else None,
        "ensemble_so_far": {**asdict(curve[-1]), "sentence": curve[-1].sentence()}
        if curve
        else None,
        "verdict": _verdict(study.paths),
    }


def best_document(study: Study, top: int) -> Document:
    """Return the best trials of a study, best first.

    Raises:
        NothingToDoError: No trial is complete yet.
    """
    leaders = study.leaders()[:top]
    if not leaders:
        raise NothingToDoError(f"study {study.name!r} has no complete trial yet.")
    rows = [asdict(trial_row(trial)) for trial in leaders]
    return {"schema": SCHEMA, "study": study.name, "trials": rows}


def list_document(studies: Path) -> Document:
    """Return all studies of a folder; one that cannot be read is named with its problem.

    Raises:
        ConfigError: It is no folder.
        NothingToDoError: It is not there.
    """
    if not studies.exists():
        raise no_study(studies)
    rows: list[Document] = []
    for paths in list_studies(studies):
        try:
            row = status_document(load_study(paths.name, studies=studies))
        except SearchError as error:
            row = {"study": paths.name, "problem": str(error)}
        rows.append({"problem": None, **row})
    return {"schema": SCHEMA, "studies": rows}


def clean_document(name: str | None, studies: Path, wish: Wish) -> Document:
    """Free what one study does not need, or all studies and what they share; tell what there was.

    Args:
        name: Name of the study; None: all of them.
        studies: Folder of studies.
        wish: What shall go.

    Raises:
        NothingToDoError: There is no study.
        SearchError: Not all of what shall go may go from the one study.
    """
    rows: list[Document] = []
    chosen = list_studies(studies) if name is None else [study_paths(name, studies)]
    for each in chosen:
        row: Document = {"study": each.name, "problem": None, "holdings": []}
        try:
            holdings = clean_study(load_study(each.name, studies=studies), wish)
            row["holdings"] = [asdict(holding) for holding in holdings]
        except SearchError as error:
            if name is not None:
                raise
            row["problem"] = str(error)
        rows.append(row)
    freed = clean_cache(studies, wish) if name is None else []
    shared = [asdict(holding) for holding in freed]
    if not rows and not shared:
        raise no_study(studies)
    everything = [*shared, *(holding for row in rows for holding in row["holdings"])]
    return {
        "schema": SCHEMA,
        "dry_run": wish.dry_run,
        "studies": rows,
        "shared": shared,
        "freed_bytes": sum(holding["n_bytes"] for holding in everything if holding["goes"]),
        "free_bytes": free_bytes(studies if studies.is_dir() else Path()),
    }


def _is_active(paths: StudyPaths) -> bool:
    """Tell whether a run works on the study: whether it holds the exclusive lock."""
    if is_frozen(location_of(paths)):  # a run would have a write-ahead log
        return False
    lock = FileLock(paths.supervisor_lock)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def _verdict(paths: StudyPaths) -> str | None:
    import json  # noqa: PLC0415

    if not paths.ensemble.is_file():
        return None
    try:
        return str(json.loads(paths.ensemble.read_text(encoding="utf-8"))["verdict"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{paths.ensemble}: cannot be read ({error}); `python -m search ensemble` writes it "
            "anew."
        ) from error

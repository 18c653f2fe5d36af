"""Another host joins a study: it needs the storage and the data, and runs trials.

What must be the same there is checked before anything is trained: the version of this program and
of the space, and the images with their roles and their order, by content. Where the study's folder
is shared, the files of the trials go there. Where it is not, the host has a folder of its own, and
its files have to be copied before an ensemble can use them: `python -m search ensemble` says whose
are missing. (To send weights and predictions through the database would be simple, and slow it
down for all.)
"""

import logging
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from search.config import StudyConfig
from search.data.decoding import OnProgress
from search.data.roles import (
    ROLES,
    Roles,
    assign_roles,
    order_fingerprint,
    read_roles,
    write_roles,
)
from search.data.store import ImageStore, is_whole, open_store
from search.database import read_attributes, read_attributes_at
from search.devices import list_gpus, plan_slots
from search.errors import ConfigError, DataError, NothingToDoError, StorageError
from search.location import Location, Server, note_location, settle_location
from search.logs import logged_to_file
from search.owners import owner_of
from search.paths import StudyPaths
from search.preparation import prepare_images
from search.record import StudyRecord, record_of
from search.running import Observer, tell_shortage
from search.schedule import search_deadline
from search.study import Study, study_paths
from search.supervisor import SearchEnd, Snapshot, Supervisor

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """What a host that joins a study is told."""

    name: str
    studies: Path
    storage: str | None = None
    """URL of the server; None: as the study's folder says."""
    settings: StudyConfig
    """What may differ from host to host: data, devices, workers, budget and the like."""
    wait_seconds: float = 0.0
    """To wait for the study to be made."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What a host did for a study."""

    study: Study
    end: SearchEnd
    ran: tuple[FrozenTrial, ...]
    """Trials that ended here meanwhile."""
    has_own_folder: bool
    """Whether its files have to be copied to where the ensemble is built."""


def work_on_study(request: JoinRequest, observer: Observer) -> Joined:
    """Join a study and run its trials until it has enough.

    Args:
        request: Which study, and what this host has for it.
        observer: Who is told, and may end it.

    Returns:
        The study, how the work ended, and what it did.

    Raises:
        NothingToDoError: There is no such study.
        ConfigError: The images are not those of the study, or the storage is not.
        StorageError: The study was made by another version.
    """
    began = time.monotonic()
    study = join_study(request, observer)
    ended_before = {trial.number for trial in study.trials() if trial.state.is_finished()}
    config = study.record.config
    slots = plan_slots(
        config.devices,
        config.workers,
        gpus=list_gpus(config.devices),
        slots_per_device=config.slots_per_device,
    )

    def on_change(snapshot: Snapshot) -> None:
        tell_shortage(study, snapshot, observer)
        observer.on_change(snapshot)

    with logged_to_file(study.paths.log):
        end = Supervisor(
            paths=study.paths,
            record=study.record,
            slots=slots,
            deadline=search_deadline(config, started=began, n_workers=len(slots)),
            on_change=on_change,
            stop_requested=observer.stop_requested,
            is_guest=True,
        ).run()
    ended = [trial for trial in study.trials() if trial.state.is_finished()]
    return Joined(
        study=study,
        end=end,
        ran=tuple(
            trial
            for trial in ended
            if trial.number not in ended_before and _ran_here(study, trial)
        ),
        has_own_folder=not study.paths.config.is_file(),
    )


def join_study(request: JoinRequest, observer: Observer) -> Study:
    """Check that this host can run trials of a study, and make its folder if it is not here.

    Returns:
        The study, with the settings and the decoded images of this host.

    Raises:
        NothingToDoError: There is no such study.
        ConfigError: The images are not those of the study, or the storage is not.
        StorageError: The study was made by another version.
    """
    paths = study_paths(request.name, request.studies)
    location = settle_location(paths, request.storage)
    record = record_of(paths.name, _read_when_there(paths, location, request, observer))
    _check_version(record)
    record = record.model_copy(update={"config": _settings_here(record.config, request.settings)})
    images, roles = _find_images(paths, record, request, observer.on_decode)
    _make_folder(paths, location, roles)
    record = record.model_copy(update={"store": images.folder.resolve()})
    return Study(paths=paths, record=record)


def _ran_here(study: Study, trial: FrozenTrial) -> bool:
    owner = owner_of(trial.user_attrs)
    return bool(owner and owner.is_here) and study.paths.trial(trial.number).folder.is_dir()


def _read_when_there(
    paths: StudyPaths, location: Location, request: JoinRequest, observer: Observer
) -> dict[str, Any]:
    """Read what the study says of itself, as soon as it has been made."""
    ends_at = time.monotonic() + request.wait_seconds
    while True:
        try:
            if isinstance(location, Server):
                return read_attributes_at(location, paths.name)
            return read_attributes(paths)
        except NothingToDoError:
            if time.monotonic() > ends_at or observer.stop_requested():
                raise
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _check_version(record: StudyRecord) -> None:
    """Refuse to run trials that would not be like those of the other hosts."""
    here = version("concertino")
    if record.version != here:
        raise StorageError(
            f"study {record.config.study_name!r} is run by concertino {record.version}, this is "
            f"{here}; all hosts of a study need the same."
        )
    record.check_space()


def _settings_here(stored: StudyConfig, given: StudyConfig) -> StudyConfig:
    """Return the configuration of the study with what this host has of its own."""
    own = {"data", "data_root", "download", "devices", "workers", "budget"}
    said = given.model_dump(include=own, exclude_unset=True)
    # A budget is that of one run on one host; what another one has left, nobody knows here.
    return stored.replaced(**{"workers": None, "devices": "auto", "budget": None, **said})


def _find_images(
    paths: StudyPaths,
    record: StudyRecord,
    request: JoinRequest,
    on_decode: OnProgress | None,
) -> tuple[ImageStore, Roles]:
    """Find the decoded images of the study, or decode this host's own, and check them.

    Raises:
        DataError: They are not those of the study, with the reason.
    """
    is_given = "data" in request.settings.model_fields_set
    if not is_given and is_whole(record.store):
        images = open_store(record.store)
    else:
        images = prepare_images(record.config, request.studies, on_decode)
    roles = assign_roles(images, seed=record.config.seed, limit_train=record.config.limit_train)
    source = f"{record.config.data}: these are not the images of study {paths.name!r}"
    if roles.fingerprint != record.data_fingerprint:
        sizes = {str(role): count for role, count in roles.sizes().items()}
        raise DataError(f"{source}: {_difference(sizes, record.role_sizes)}.")
    in_order = order_fingerprint(images, roles) == (
        record.order_fingerprint or order_fingerprint(images, roles)
    )
    if not in_order or (paths.roles.is_file() and not _same_rows(roles, read_roles(paths.roles))):
        raise DataError(
            f"{source}: they are the same, but in another order; give the files the names that "
            "they have on the other hosts."
        )
    return images, roles


def _difference(here: dict[str, int], there: dict[str, int]) -> str:
    """Say how roles differ."""
    parts = [
        f"{role} {here.get(role, 0):,} here and {count:,} there"
        for role, count in there.items()
        if here.get(role, 0) != count
    ]
    if parts:
        return ", ".join(parts)
    return (
        "as many for each role, but with other pixels or labels; files that were changed, or "
        "another version of Pillow, would do that"
    )


def _same_rows(one: Roles, other: Roles) -> bool:
    return all(np.array_equal(one.rows(role), other.rows(role)) for role in ROLES)


def _make_folder(paths: StudyPaths, location: Location, roles: Roles) -> None:
    """Make the folder of a study that is not here yet; one that is here stays as it is."""
    try:
        paths.folder.mkdir(parents=True, exist_ok=True)
        paths.pause_lock.touch()
        if not paths.roles.is_file():
            write_roles(paths.roles, roles)
        if isinstance(location, Server):
            note_location(paths, location)
    except OSError as error:
        raise ConfigError(
            f"{paths.folder}: cannot be written: {error.strerror or error}; --studies names "
            "another folder."
        ) from error

"""Makes a study: data, roles, space, first trials; nothing is trained."""

import dataclasses
import logging
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
from optuna.study import StudyDirection

from ensembles.metrics import METRICS
from search.config import StudyConfig
from search.data.decoding import OnProgress, untold
from search.data.roles import (
    ROLES,
    Roles,
    assign_roles,
    order_fingerprint,
    read_roles,
    write_roles,
)
from search.data.sources import DataRequest, list_dataset
from search.data.statistics import channel_statistics
from search.data.store import ImageStore, is_whole, prepare_store
from search.devices import list_gpus, n_usable_cores, plan_slots
from search.errors import DataError
from search.location import Server, location_of, settle_location
from search.narrowing import choose_space
from search.new_storage import check_free
from search.paths import StudyPaths, cache_folder, write_whole
from search.record import StudyRecord
from search.samplers import grid_of
from search.schedule import plan_trials
from search.storage import create_study
from search.study import Study
from spaces.known import known_parameters
from spaces.space import Space
from spaces.task import Task

logger = logging.getLogger(__name__)


def make_study(
    paths: StudyPaths, config: StudyConfig, studies: Path, on_decode: OnProgress | None
) -> StudyRecord:
    """Decode the images, assign the roles, and write the study with its first trials.

    Args:
        paths: Files of the study; its folder must exist.
        config: What was asked.
        studies: Folder of studies, which share the decoded images.
        on_decode: Told how many images are decoded, of how many.

    Returns:
        What the study says of itself.

    Raises:
        ConfigError: The configuration or the data cannot be used.
    """
    location = settle_location(paths, config.storage)
    check_free(paths, location)
    config = config.without_storage()
    space = choose_space(config)
    slots = plan_slots(
        config.devices,
        config.workers,
        gpus=list_gpus(config.devices),
        slots_per_device=config.slots_per_device,
    )
    store = prepare_images(config, studies, on_decode)
    roles = assign_roles(store, seed=config.seed, limit_train=config.limit_train)
    config = bounded_by_grid(config, space, store.task)
    mean, std = channel_statistics(store, roles.train)
    record = StudyRecord(
        version=version("concertino"),
        config=config,
        space=space,
        space_fingerprint=space.fingerprint(),
        task=store.task,
        plan=plan_trials(config, n_train=len(roles.train), n_workers=len(slots)),
        image_input=dataclasses.replace(store.image_input, mean=mean, std=std),
        class_names=store.class_names,
        store=store.folder.resolve(),
        data_fingerprint=roles.fingerprint,
        order_fingerprint=order_fingerprint(store, roles),
        role_sizes={str(role): count for role, count in roles.sizes().items()},
        skipped=len(store.skipped),
        dropped=len(roles.dropped),
    )
    _log_data(store, roles)
    write_roles(paths.roles, roles)
    rises = METRICS[config.metric].higher_is_better
    create_study(
        paths,
        StudyDirection.MAXIMIZE if rises else StudyDirection.MINIMIZE,
        metric=config.metric,
        attributes=record.attributes(),
        first_trials=() if config.sampler == "grid" else known_parameters(space, store.task),
        location=location,
    )
    return record


def bounded_by_grid(config: StudyConfig, space: Space, task: Task) -> StudyConfig:
    """Return the configuration with no more trials than a grid has points, if it is one.

    Raises:
        ConfigError: The grid is too large to be searched.
    """
    if config.sampler != "grid":
        return config
    n_points = math.prod(len(values) for values in grid_of(space, task).values())
    return config.replaced(trials=min(config.trials, n_points))


def with_images(study: Study, on_decode: OnProgress | None = None) -> Study:
    """Return a study whose decoded images are there; decode them again if they are gone.

    Raises:
        DataError: The images are not those that the study began with.
    """
    paths, record = study.paths, study.record
    before = read_roles(paths.roles)
    if is_whole(record.store):
        return study
    store = prepare_images(record.config, paths.folder.parent, on_decode)
    now = assign_roles(store, seed=record.config.seed, limit_train=record.config.limit_train)
    if any(not np.array_equal(now.rows(role), before.rows(role)) for role in ROLES) or (
        now.fingerprint != record.data_fingerprint
    ):
        raise DataError(
            f"{record.config.data}: these are not the images that study {paths.name!r} began "
            "with; give the new search a --name of its own."
        )
    present = record.model_copy(update={"store": store.folder.resolve()})
    return dataclasses.replace(study, record=present)


def write_config(paths: StudyPaths, config: StudyConfig) -> None:
    """Write the resolved configuration for people to read, without a password."""
    location = location_of(paths)
    if isinstance(location, Server):
        config = config.model_copy(update={"storage": location.bare_url})
    write_whole(paths.config, config.model_dump_json(indent=2).encode())


def prepare_images(config: StudyConfig, studies: Path, on_decode: OnProgress | None) -> ImageStore:
    """Return the decoded images of a study's data, decoded now if they are not there.

    Raises:
        DataError: The data are not there, or nobody can learn from them.
    """
    request = DataRequest(data=config.data, data_root=config.data_root, download=config.download)
    listing = list_dataset(request)
    listing.check_trainable()
    return prepare_store(
        listing,
        cache_folder=cache_folder(studies),
        image_size=config.image_size,
        fit=config.fit,
        on_progress=on_decode or untold,
        n_threads=n_usable_cores(),
    )


def _log_data(store: ImageStore, roles: Roles) -> None:
    """Say what the study is made of, and name every file that was left out."""
    for role, count in roles.sizes().items():
        logger.info("role %s: %d images", role, count)
    for skipped in store.skipped:
        logger.warning("left out: %s: %s", skipped.name, skipped.reason)

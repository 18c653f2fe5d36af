"""What a study says of itself, stored in its database and checked when it goes on."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import optuna
from pydantic import BaseModel, ConfigDict, ValidationError

from ensembles.inputs import ImageInput
from search.config import StudyConfig
from search.errors import StorageError
from search.schedule import Plan
from spaces.space import Space
from spaces.task import Task

ATTRIBUTE = "concertino"
STOPPED_SLOTS = "stopped_slots"
"""Attribute of the study: slots of the newest run that get no more workers, as sentences."""
Sizes: TypeAlias = dict[str, int]


class StudyRecord(BaseModel):
    """Everything that is decided once, when a study is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    """Version of the package that made the study."""
    config: StudyConfig
    space: Space
    space_fingerprint: str
    task: Task
    plan: Plan
    image_input: ImageInput
    class_names: tuple[str, ...]
    store: Path
    """Folder of the decoded images."""
    data_fingerprint: str
    order_fingerprint: str = ""
    """Of the order of the images, which that of the predictions is; empty in an older study."""
    role_sizes: Sizes
    skipped: int
    """Files that could not be read."""
    dropped: int
    """Duplicates of images that the user's split put elsewhere too."""
    ordered: bool = False
    """Whether all trials are ordered beforehand, so that none is sampled."""

    def attributes(self) -> dict[str, object]:
        """Return the study's user attributes: this record, and what people look for in it."""
        return {
            "data": self.config.data,
            "images": ", ".join(f"{role} {count}" for role, count in self.role_sizes.items()),
            "classes": len(self.class_names),
            "seed": self.config.seed,
            "version": self.version,
            ATTRIBUTE: json.loads(self.model_dump_json()),  # long: it fills the dashboard's page
        }

    def check_space(self) -> None:
        """Refuse to add trials to a space that this version asks or builds otherwise.

        Raises:
            StorageError: The study was made by another version of the space.
        """
        now = self.space.fingerprint()
        if now != self.space_fingerprint:
            raise StorageError(
                f"study {self.config.study_name!r} was made with another version of the space "
                f"({self.space_fingerprint}, this is {now}), so its trials would not be alike; "
                f"go on with concertino {self.version}, or give the new search a --name of its "
                "own."
            )


def read_record(study: optuna.Study) -> StudyRecord:
    """Read what a study says of itself.

    Raises:
        StorageError: It is not a study of this tool, or of a version that cannot be read.
    """
    return record_of(study.study_name, study.user_attrs)


def record_of(name: str, attributes: Mapping[str, Any]) -> StudyRecord:
    """Read what a study says of itself from its user attributes.

    Raises:
        StorageError: It is not a study of this tool, or of a version that cannot be read.
    """
    stored = attributes.get(ATTRIBUTE)
    if not isinstance(stored, dict):
        got = "" if stored is None else " that can be read"
        raise StorageError(
            f"study {name!r} was not made by `python -m search run`: "
            f"it has no attribute {ATTRIBUTE!r}{got}."
        )
    try:
        return StudyRecord.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StorageError(
            f"study {name!r} was made by another version "
            f"({stored.get('version', 'unknown')}, this is {version('concertino')}): "
            f"{where}: {first['msg']}."
        ) from error

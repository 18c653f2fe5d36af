"""What a study is asked to do; flags, environment, TOML and the saved record share one model."""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ensembles.inputs import Fit
from search.durations import parse_duration
from search.errors import ConfigError
from search.location import parse_server
from search.words import suggestion
from spaces.trial import Value

Sampler = Literal["tpe", "random", "grid", "gp", "cmaes", "nsga2"]
Pruner = Literal["median", "none", "percentile", "sha", "hyperband", "rungs"]
Metric = Literal["log_loss", "accuracy", "balanced_accuracy", "macro_f1"]
Preset = Literal["quick", "balanced", "best"]

PRESETS: Mapping[Preset, Mapping[str, object]] = {
    "quick": {"trials": 20, "epochs": 6, "space": "small"},
    "balanced": {},
    "best": {"trials": 300, "epochs": 40, "keep": 40},
}
ENVIRONMENT_PREFIX = "CONCERTINO_"
STUDIES_VARIABLE = "CONCERTINO_STUDIES"  # read by the commands: it is no setting of a study
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_TRIALS = 10_000_000
MAX_SEED = 2**32 - 1
"""The largest that NumPy takes."""

# What may change when a study goes on; everything else is the study, and is refused.
CHANGEABLE = frozenset(
    {
        "trials",
        "budget",
        "trial_timeout",
        "workers",
        "devices",
        "slots_per_device",
        "keep",
        "download",
        "data_root",
    }
    | {"max_members", "preset", "snapshots", "seeds", "folds"}
)


class StudyConfig(BaseModel):
    """Everything that `run` may be told."""

    # Built when first used: --help needs the names of the fields alone.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str = Field("", description="Name of the study; default: the name of the data.")
    data: str = Field(
        "digits",
        description="digits (embedded), a folder of class folders, a CSV manifest, an .npz file, "
        "or a torchvision name such as cifar10.",
    )
    trials: int = Field(
        100, ge=1, le=MAX_TRIALS, description="Finished trials that the study shall have."
    )
    budget: str | None = Field(
        None, description="Time for everything, ensemble included: 90s, 15m, 1h30m."
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="Epochs of a trial; default: from the number of images, or from --budget.",
    )
    trial_budget: str | None = Field(
        None,
        description="Time that each trial's schedule is fitted to, in the place of --epochs: 30s, "
        "5m; costly networks then train for fewer epochs.",
    )
    trial_timeout: str | None = Field(
        None, description="Longest time of one trial; its best epoch is kept."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="End a trial whose last so many rounds were no better; default: never, since "
        "a schedule anneals and its last rounds are its best.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Worker processes; default: one per GPU, or one per CPU core.",
    )
    devices: str = Field(
        "auto", description="auto, cpu, or a list such as 0,1 or cuda:0,cuda:1 or GPU-7f31."
    )
    slots_per_device: str | None = Field(
        None,
        description="Workers on each GPU: a number, or auto: as many as have room, by the memory "
        "that the first trial takes; default: one.",
    )
    seed: int = Field(
        0, ge=0, le=MAX_SEED, description="Fixes the roles, the samples and the trainings."
    )
    preset: Preset = Field("balanced", description="Defaults for a quick look or a long search.")
    metric: Metric = Field("log_loss", description="What the search optimizes on the stop role.")
    sampler: Sampler = Field("tpe", description="How new configurations are chosen.")
    pruner: Pruner = Field("median", description="How weak trials are ended early.")
    rungs: int = Field(
        2,
        ge=1,
        le=6,
        description="With --pruner rungs: short schedules before a trial's last one.",
    )
    eta: int = Field(
        2, ge=2, le=8, description="With --pruner rungs: one of so many trials passes a rung."
    )
    space: str = Field(
        "auto", description="Space to search: default, digits, small; auto: by the data."
    )
    vary: dict[str, Value | list[Value]] = Field(
        {}, description="Narrow the space: --vary.flips none --vary.kernel_sizes 3,5."
    )
    image_size: int | None = Field(
        None, ge=4, le=512, description="Side of the images in pixels; default: from the data."
    )
    fit: Fit = Field("crop", description="How a picture that is not square becomes one.")
    limit_train: int | None = Field(
        None, ge=2, description="Train on this many images at the most; other roles stay whole."
    )
    data_root: Path | None = Field(None, description="Where torchvision data sets lie.")
    download: bool = Field(
        default=False, description="Download a torchvision data set that is not there."
    )
    storage: str | None = Field(
        None,
        description="PostgreSQL database for workers on several hosts, "
        "postgresql://USER@HOST/DATABASE; default: SQLite in the study's folder.",
    )
    keep: int = Field(20, ge=1, description="Trials whose weights are kept.")
    snapshots: int = Field(
        0,
        ge=0,
        le=20,
        description="Late rounds of each trial that are kept as candidates besides its best one.",
    )
    max_members: int = Field(5, ge=1, description="Members of an ensemble, at the most.")
    seeds: int | None = Field(
        None,
        ge=2,
        le=99,
        description="Compare the ensemble with as many trainings of the best trial's recipe.",
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=99,
        description="Small data: train the best trials again on each of so many folds.",
    )

    @field_validator("budget", "trial_budget", "trial_timeout")
    @classmethod
    def _check_duration(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_duration(value)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("trial_budget")
    @classmethod
    def _check_length(cls, value: str | None, info: Any) -> str | None:
        if value is not None and info.data.get("epochs") is not None:
            raise ValueError(
                f"a trial has --epochs or a --trial-budget, not both; got {value!r} beside "
                f"{info.data['epochs']} epochs."
            )
        return value

    @field_validator("slots_per_device")
    @classmethod
    def _check_slots(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"auto|[1-9]\d?", value):
            raise ValueError(f"expected auto or a number from 1 to 99, got {value!r}.")
        return value

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if value:  # none given: it is made from the name of the data
            try:
                check_name(value)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("storage")
    @classmethod
    def _check_storage(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_server(value)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("space")
    @classmethod
    def _check_space(cls, value: str) -> str:
        from spaces.space import SPACES  # noqa: PLC0415  # --help does not need it

        if value != "auto" and value not in SPACES:
            raise ValueError(f"known spaces are auto, {', '.join(SPACES)}; got {value!r}.")
        return value

    @property
    def study_name(self) -> str:
        """Name of the study: as given, or made from the name of the data."""
        if self.name:
            return self.name
        stem = Path(self.data).resolve().stem if Path(self.data).exists() else self.data
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "study"

    @property
    def budget_seconds(self) -> float | None:
        """`budget` in seconds."""
        return None if self.budget is None else parse_duration(self.budget)

    @property
    def trial_budget_seconds(self) -> float | None:
        """`trial_budget` in seconds."""
        return None if self.trial_budget is None else parse_duration(self.trial_budget)

    @property
    def trial_timeout_seconds(self) -> float | None:
        """`trial_timeout` in seconds."""
        return None if self.trial_timeout is None else parse_duration(self.trial_timeout)

    def without_storage(self) -> "StudyConfig":
        """Return a copy for the study's record: where that is, the study's folder knows."""
        said = self.model_dump(exclude_unset=True, exclude={"storage"})
        return StudyConfig.model_validate(said)

    def replaced(self, **changes: object) -> "StudyConfig":
        """Return a checked copy with some fields changed."""
        return StudyConfig.model_validate({**self.model_dump(exclude_unset=True), **changes})


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a study, and might lead out of the folder of studies.

    Raises:
        ConfigError: With what a name looks like.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            "a name has letters, digits, dots, dashes and underscores, 64 at the most, "
            f"and starts with a letter or a digit; got {name!r}."
        )


def resolve_config(
    flags: Mapping[str, object],
    *,
    file: Path | None = None,
    studies: Path = Path("studies"),
    environment: Mapping[str, str] | None = None,
) -> StudyConfig:
    """Combine what was said in all places: flag > environment > TOML > preset > default.

    Args:
        flags: Fields that were given on the command line, and nothing else.
        file: A TOML file; default: `NAME.toml` in `studies`, if the study has a name and the
            file is there.
        studies: Folder of studies and their definitions.
        environment: Where `CONCERTINO_TRIALS` and its like are looked up; default: `os.environ`.

    Returns:
        The checked configuration; `model_fields_set` holds what was said anywhere.

    Raises:
        ConfigError: An unknown key, a value that is not allowed, or a file that cannot be read.
    """
    surroundings = _from_environment(os.environ if environment is None else environment)
    source = file or _default_file({**surroundings, **flags}.get("name"), studies)
    written = _read_toml(source) if source else {}
    merged = _merged(written, surroundings, flags)
    preset = merged.get("preset", "balanced")
    if preset not in PRESETS:
        raise ConfigError(f"preset: known presets are {', '.join(PRESETS)}; got {preset!r}.")
    try:
        return StudyConfig.model_validate(
            _merged(PRESETS[preset], merged)  # type: ignore[index]
        )
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        place = "configuration"
        if key not in flags:
            place = "environment" if key in surroundings else str(source)
        raise ConfigError(f"{place}: {explain(error)}") from error


def _merged(*levels: Mapping[str, object]) -> dict[str, object]:
    """Combine settings, the later ones first; either length of a trial takes the other's place."""
    merged: dict[str, object] = {}
    for level in levels:
        for said, other in (("epochs", "trial_budget"), ("trial_budget", "epochs")):
            if said in level:
                merged.pop(other, None)
        merged |= level
    return merged


def validate_config(values: Mapping[str, object], *, source: str) -> StudyConfig:
    """Check a configuration.

    Args:
        values: Fields by name.
        source: What to name in an error.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: In one line: which key, what is wrong, what would be right.
    """
    try:
        return StudyConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error)}") from error


def continued(stored: StudyConfig, given: StudyConfig) -> StudyConfig:
    """Return the configuration with which an existing study goes on.

    Args:
        stored: What the study was started with.
        given: What is asked now; only what was said counts.

    Returns:
        The stored configuration with the changes that a study allows.

    Raises:
        ConfigError: Something is asked that would make it another study.
    """
    said = given.without_storage().model_dump(exclude_unset=True)
    for key, value in said.items():
        same = value == getattr(stored, key) or (key == "data" and _same_path(value, stored.data))
        if key not in CHANGEABLE | {"name"} and not same:
            raise ConfigError(
                f"study {stored.study_name!r} was started with {key} = {getattr(stored, key)!r}, "
                f"got {value!r}; go on without it, or give the new search a --name of its own."
            )
    return stored.replaced(**{key: value for key, value in said.items() if key in CHANGEABLE})


def _same_path(one: object, other: str) -> bool:
    """Tell whether `photos` and `./photos` are the same place."""
    path = Path(str(one))
    return path.exists() and path.resolve() == Path(other).resolve()


def explain(error: ValidationError) -> str:
    """Return the first mistake as one line, with a suggestion for an unknown key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{suggestion(key, StudyConfig.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if "got " in message else f", got {first['input']!r}"
    return f"{key}: {message.rstrip('.')}{got}."


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    fields = StudyConfig.model_fields
    said: dict[str, object] = {}
    for variable, value in environment.items():
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == STUDIES_VARIABLE:
            continue
        if key not in fields:
            known = [ENVIRONMENT_PREFIX + field.upper() for field in fields]
            raise ConfigError(
                f"environment: unknown variable {variable!r}{suggestion(variable, known)}"
            )
        said[key] = _read_json(variable, value) if key == "vary" else value
    return said


def _read_json(variable: str, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f'{variable}: expected JSON such as {{"flips": "none"}}, got {text!r}.'
        ) from error


def _default_file(name: object, studies: Path) -> Path | None:
    path = studies / f"{name}.toml" if isinstance(name, str) and name else None
    return path if path and path.is_file() else None


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from error

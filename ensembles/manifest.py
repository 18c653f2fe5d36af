"""What a bundle's `manifest.json` says: the one description that loading trusts.

Version 2 names members freely, where version 1 knew none but trials; so a program that reads
version 1 alone must refuse it, and says that it is too new. Version 1 is still read.

A bundle may come from a stranger, so every value is checked before it is used: an unknown key, a
number out of range or a file name outside the folder is an error, never something to guess at.
Networks are named by the records of `spaces`; nothing in a manifest is ever imported or evaluated.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ensembles.cascade import Cascade
from ensembles.combination import Combination
from ensembles.conformal import Conformal, Rejection
from ensembles.decision import MOST_PROBABLE, Decision
from ensembles.errors import BundleError, EnsembleError
from ensembles.inputs import ImageInput
from ensembles.latency import Cost
from spaces.architecture import Architecture
from spaces.errors import SpaceError
from spaces.task import Task

FORMAT: Literal["concertino-bundle"] = "concertino-bundle"
FORMAT_VERSION: Literal[2] = 2
_SIGNS = (("format",), ("format_version",))
MAX_MEMBERS = 100
MAX_FILE_BYTES = 4 * 1024**3
"""Of one member's weights: a thousand million of them in float32."""
_MAX_CLASSES = 100_000
_MAX_LAYERS = 1000
_MAX_IMAGE_SIZE = 4096

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NBytes = Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]
ClassName = Annotated[str, Field(min_length=1, max_length=1000)]
MemberName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9@.-]{0,39}$")]
"""Such as `42` for a trial, `42@8` for a snapshot, `seed-3`, `soup-42`, `42-fold-2`."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class MemberRecord(_Record):
    """One network of the ensemble and the file of its weights."""

    name: MemberName
    file: Annotated[str, Field(pattern=r"^members/[0-9]{5,12}\.safetensors$")]
    sha256: Sha256
    n_bytes: NBytes
    architecture: Architecture
    n_parameters: Annotated[int, Field(ge=1)]
    cost: Cost | None = None
    """On the machine that exported it; None if nobody measured."""

    @model_validator(mode="after")
    def _refuse_endless_networks(self) -> "MemberRecord":
        # Building takes time for each layer, before any file has shown that they exist.
        n_layers = sum(stage.n_convolutions for stage in self.architecture.stages)
        if n_layers > _MAX_LAYERS:
            raise ValueError(f"a network may have {_MAX_LAYERS} convolutions, got {n_layers}")
        return self


class SelfTestRecord(_Record):
    """Images, the probabilities that the ensemble gave for them, and how near is near enough.

    Those of each stage of the cascade too, if there is one; version 1 held none of them.
    """

    file: Literal["self_test.safetensors"] = "self_test.safetensors"
    sha256: Sha256
    n_bytes: Annotated[int, Field(ge=1, le=1024**3)]
    tolerance: Annotated[float, Field(gt=0, le=0.01)]


class Figures(_Record):
    """One line of the table of results, on the images named in the report."""

    name: str
    """The method, such as `greedy`, or `single`."""
    n_members: Annotated[int, Field(ge=1)]
    accuracy: float
    accuracy_interval: tuple[float, float]
    """Limits of the 95 % interval."""
    log_loss: float
    expected_calibration_error: float


class CascadeFigures(_Record):
    """What the cascade saved and lost, on the images named in the report."""

    accuracy_lost: float
    """Of the full ensemble minus its own, as a share; below 0 is a gain."""
    cost_share: float
    """Mean cost of an image, as a share of running all members."""
    mean_members: float
    """Members that an image needed on average."""


Number: TypeAlias = bool | int | float | str | tuple[float, ...] | None


class ReportRecord(_Record):
    """How good the bundle is, and whether the ensemble earned its place."""

    role: str
    """The images that the figures were measured on, such as `test`."""
    n_images: Annotated[int, Field(ge=1)]
    n_openings: Annotated[int, Field(ge=1)] = 1
    """How often this role had been looked at, this time included."""
    figures: tuple[Figures, ...]
    """The exported one first."""
    verdict: str
    """One sentence on the difference between the ensemble and the best single model."""
    comparison: Mapping[str, Number] = {}
    """The numbers behind the verdict."""
    cascade: CascadeFigures | None = None


class Distillation(_Record):
    """What a network learned from besides labels; the ensemble itself is not in the bundle."""

    method: str
    """Of the ensemble that was its teacher."""
    members: Annotated[tuple[MemberName, ...], Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0)]
    """At which teacher and student were compared."""
    share: Annotated[float, Field(ge=0, le=1)]
    """Of the loss that the teacher decided."""
    recipe: str
    """Where the student's recipe comes from, such as `trial 17`."""


class Provenance(_Record):
    """Where the bundle comes from; nothing of it is needed to predict."""

    study: str
    dataset: str
    dataset_fingerprint: str
    n_images: Mapping[str, int] = {}
    """Images in each role."""
    seeds: Mapping[str, int] = {}
    versions: Mapping[str, str] = {}
    """Of Python and the libraries that trained it."""
    distilled_from: Distillation | None = None


class Manifest(_Record):
    """All that a bundle says about itself."""

    format: Literal["concertino-bundle"]
    format_version: Literal[1, 2]
    created: AwareDatetime
    tool_version: str
    classes: Annotated[tuple[ClassName, ...], Field(min_length=2, max_length=_MAX_CLASSES)]
    """Names, in the order of the probabilities."""
    image_input: ImageInput
    members: Annotated[tuple[MemberRecord, ...], Field(min_length=1, max_length=MAX_MEMBERS)]
    combination: Combination
    self_test: SelfTestRecord
    provenance: Provenance
    report: ReportRecord | None = None
    decision: Decision = MOST_PROBABLE
    """How the probabilities become a label."""
    cascade: Cascade | None = None
    """How the members may run one after another, until they are sure."""
    prefers_cascade: bool = False
    """Whether it runs as a cascade unless told otherwise."""
    conformal: Conformal | None = None
    """Which classes an image may have, for a stated share of misses."""
    rejection: Rejection | None = None
    """Which images are answered, for a stated accuracy of the answers."""

    @property
    def task(self) -> Task:
        """What the members must be built for."""
        return Task(
            image_size=self.image_input.size,
            channels=self.image_input.channels,
            n_classes=len(self.classes),
        )

    @model_validator(mode="after")
    def _check_that_the_parts_agree(self) -> "Manifest":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: the names must differ")
        for what in ("file", "name"):
            if len({getattr(member, what) for member in self.members}) != len(self.members):
                raise ValueError(f"members: the {what}s must differ")
        if self.combination.n_members != len(self.members):
            raise ValueError(
                f"combination: {self.combination.n_members} weights "
                f"for {len(self.members)} members"
            )
        _check_class_counts(self)
        _check_cascade(self)
        _check_promises(self)
        check_image_input(self.image_input)
        return self


def manifest_to_text(manifest: Manifest) -> str:
    """Return the JSON text of a manifest; `manifest_from_text` reads it back."""
    return manifest.model_dump_json(indent=2) + "\n"


def manifest_from_text(text: str | bytes) -> Manifest:
    """Read a manifest.

    Args:
        text: JSON, in UTF-8 if bytes.

    Returns:
        A manifest in which every value has been checked, but no file has been looked at.

    Raises:
        BundleError: The text is not JSON, a key is missing or unknown, or a value is out of range.
    """
    values = _parsed(text)
    try:
        manifest = Manifest.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise BundleError(f"manifest.json: {first_problem(error)}.") from error
    except (EnsembleError, SpaceError) as error:
        raise BundleError(f"manifest.json: {error}") from error
    return manifest


def first_problem(error: ValidationError) -> str:
    """Return, in one line, where a manifest is wrong and how."""
    problems = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["loc"] in _SIGNS]
    first = (unknown or problems)[0]
    where = ".".join(str(part) for part in first["loc"])
    line = f"{where}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    if first["type"] not in ("missing", "json_invalid", "value_error"):
        line += f", got {repr(first['input'])[:60]}"
    if unknown:
        line += "; it is not a bundle, or a later version of Concertino wrote it"
    return line


def check_image_input(image_input: ImageInput) -> None:
    """Check what an input of a bundle needs beyond the rules of `ImageInput`.

    Raises:
        ValueError: It is too large, or its means and deviations do not fit its channels.
    """
    if image_input.size > _MAX_IMAGE_SIZE:
        raise ValueError(
            f"image_input: size may be {_MAX_IMAGE_SIZE} pixels, got {image_input.size}"
        )
    if {len(image_input.mean), len(image_input.std)} != {image_input.channels}:
        raise ValueError(
            f"image_input: {image_input.channels} channels need as many means and deviations, "
            f"got {len(image_input.mean)} and {len(image_input.std)}"
        )
    if min(image_input.std) <= 0:
        raise ValueError(f"image_input: deviations must be above 0, got {min(image_input.std)}")


def _check_class_counts(manifest: Manifest) -> None:
    stages = manifest.cascade.stages if manifest.cascade else ()
    n_classes = len(manifest.classes)
    for each in (manifest.combination, *(stage.combination for stage in stages)):
        if len(each.class_biases) not in (0, n_classes):
            raise ValueError(
                f"combination: {len(each.class_biases)} biases for {n_classes} classes"
            )
    if len(manifest.decision.priors) not in (0, n_classes):
        raise ValueError(
            f"decision: {len(manifest.decision.priors)} class shares for {n_classes} classes"
        )


def _check_cascade(manifest: Manifest) -> None:
    cascade, n_members = manifest.cascade, len(manifest.members)
    if cascade is None:
        if manifest.prefers_cascade:
            raise ValueError("prefers_cascade: there is no cascade")
        return
    if len(cascade.order) != n_members:
        raise ValueError(f"cascade: {len(cascade.order)} positions for {n_members} members")
    if cascade.stages[-1].combination != manifest.combination.select(cascade.order):
        raise ValueError("cascade: its last stage must combine all members as the ensemble does")


def _check_promises(manifest: Manifest) -> None:
    """Refuse promises that the predictions cannot keep."""
    is_plain = manifest.decision.rule == "most_probable"
    promises = (manifest.cascade, manifest.conformal, manifest.rejection)
    if manifest.combination.space == "vote" and not (is_plain and promises == (None,) * 3):
        raise ValueError(
            "combination: shares of votes are no probabilities, so a bundle that votes has no "
            "cascade, conformal, rejection or other decision than most_probable"
        )
    if manifest.rejection and not is_plain:
        raise ValueError(
            "rejection: it is fitted for the most probable class, which is not the label by "
            f"the decision {manifest.decision.rule}"
        )


def _parsed(text: str | bytes) -> Any:
    """Parse JSON and bring it to the newest version; what it holds is still unchecked."""
    try:
        values = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            # Records of `spaces` keep their own rules, which know no infinity.
            parse_constant=_refuse_number,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json is not JSON: {error}.") from error
    if isinstance(values, dict) and values.get("format_version") == 1:
        for member in _records(values.get("members")):
            # In version 1, a member was a trial.
            if "name" not in member and type(member.get("trial")) is int:
                member["name"] = str(member.pop("trial"))
    return values


def _records(values: object) -> list[dict[str, Any]]:
    return [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []


def _finite(number: str) -> float:
    value = float(number)
    return value if abs(value) < float("inf") else _refuse_number(number)


def _refuse_number(number: str) -> float:
    raise BundleError(f"manifest.json: numbers must be finite, got {number[:20]}.")

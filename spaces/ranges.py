"""What a study may vary: the choices and ranges of one space."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, TypeAlias, TypeVar, get_args

from pydantic import BeforeValidator

from spaces.architecture import Activation, Family, Head, Initialization, Norm, Pooling, Stem
from spaces.augmentation import Flip, Mixing, Policy
from spaces.errors import SpaceError
from spaces.optimizer import Averaging, OptimizerName, ScheduleName
from spaces.strict import STRICT

SPACE_VERSION = 1
"""Raise it whenever equal fields ask for other parameters, or make other recipes of them."""


def _as_tuple(value: object) -> object:
    """Take one value for a choice of one."""
    return value if isinstance(value, list | tuple) else (value,)


def _as_one(value: object) -> object:
    """Take a list of one value for the value."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


Item = TypeVar("Item")
Choices: TypeAlias = Annotated[tuple[Item, ...], BeforeValidator(_as_tuple)]
Limit: TypeAlias = Annotated[int, BeforeValidator(_as_one)]
IntRange: TypeAlias = tuple[int, int]
Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a study may vary; the defaults are for images that a CPU can search on.

    A field in the plural holds the choices, one in the singular the range (lowest, highest). One
    choice, or a range from a value to itself, fixes that value: the trial is not asked.
    """

    __pydantic_config__ = STRICT

    families: Choices[Family] = ("plain", "residual")
    """Which builder makes the network."""
    stems: Choices[Stem] = ("whitening", "convolution")
    """First layer: frozen whitening filters, or a trained convolution; `pooled`, one that halves
    the resolution, is for those who ask for it."""
    stem_widths: Choices[int] = (16,)
    """Channels after a trained stem."""
    depth: IntRange = (2, 4)
    """Stages, each at half the resolution of the one before; fewer where images are small."""
    width: IntRange = (8, 48)
    """Channels of the first stage, in steps of 8."""
    growth: Range = (1.0, 4.0)
    """Factor from the width of a stage to that of the next, in steps of 0.5."""
    max_width: Limit = 128
    """No stage is wider."""
    max_stage_weights: Limit = 400_000
    """Stages with more weights are made narrower, so that kernel 7 pays with its width."""
    kernel_sizes: Choices[int] = (3, 5, 7)
    """Kernel of each stage; 7 takes 2.6 times the time of 3."""
    n_convolutions: IntRange = (1, 3)
    """Convolutions of each stage."""
    poolings: Choices[Pooling] = ("max", "average", "stride")
    """How stages halve the resolution; `stride` is about 3 times faster than the others."""
    norms: Choices[Norm] = ("batch", "group", "none")
    """Norm after each convolution."""
    activations: Choices[Activation] = ("relu", "leaky_relu", "gelu", "silu")
    """Activation after each norm."""
    heads: Choices[Head] = ("max", "average")
    """Global pooling before the linear layer."""
    dropout: Range = (0.0, 0.5)
    """Share of features dropped before the linear layer, in steps of 0.1."""
    initializations: Choices[Initialization] = ("identity", "he", "xavier")
    """How weights start."""
    logit_scales: Choices[float] = (1 / 9, 1 / 3, 1.0)
    """Factor on the logits."""

    optimizers: Choices[OptimizerName] = ("sgd", "muon", "adamw", "adam", "rmsprop", "adagrad")
    """Rule of the update."""
    learning_rate_factor: Range = (0.2, 5.0)
    """Times the base rate of the optimizer at its batch size; logarithmic."""
    momentum: Range = (0.8, 0.95)
    """Momentum of SGD and RMSprop, first beta of Adam, in steps of 0.05."""
    nesterov: Choices[bool] = (True,)
    """Nesterov's momentum; only SGD has it."""
    weight_decay_factor: Range = (0.0, 2.0)
    """Times the base weight decay of the optimizer, in steps of 0.25; 0 is off."""
    norm_bias_factors: Choices[float] = (1.0, 8.0, 64.0)
    """How many times faster the biases of norms learn; only with SGD and Muon."""
    schedules: Choices[ScheduleName] = ("linear", "cosine", "step", "constant")
    """Course of the learning rate after the warm-up."""
    warmup: Range = (0.0, 0.4)
    """Share of the steps in which the learning rate rises, in steps of 0.01."""
    batch_sizes: Choices[int] = (64, 128, 256, 512, 1024)
    """Images of one step."""
    label_smoothing: Range = (0.0, 0.3)
    """Share of the target spread over all classes, in steps of 0.05."""
    averagings: Choices[Averaging] = ("none", "ema", "lookahead")
    """Average of the weights that is evaluated and kept."""

    flips: Choices[Flip] = ("none", "random", "alternating")
    """Left to right; leave it at `none` where a mirrored image is another class."""
    crop: Range = (0.0, 0.125)
    """Largest shift as a share of the image size, in steps of 1/32."""
    rotation: Range = (0.0, 30.0)
    """Largest rotation in degrees, in steps of 15."""
    scale: Range = (0.0, 0.2)
    """Largest relative change of size, in steps of 0.1."""
    shear: Range = (0.0, 20.0)
    """Largest shear in degrees, in steps of 10."""
    jitter: Range = (0.0, 0.4)
    """Strength of the change of brightness, contrast and saturation, in steps of 0.2."""
    erasing: Range = (0.0, 0.5)
    """Side of an erased square as a share of the image size, in steps of 0.25."""
    policies: Choices[Policy] = ("none", "trivial")
    """`trivial` takes the place of rotation, scale, shear and jitter."""
    mixings: Choices[Mixing] = ("none", "mixup", "cutmix")
    """Two images and their labels in one."""
    mixing_alpha: Range = (0.2, 1.0)
    """Both parameters of the Beta distribution of their shares, in steps of 0.4."""
    early_size: Range = (0.5, 1.0)
    """Side of the images in the early steps, as a share of the image size, in steps of 0.25; 1
    where they have fewer than 24 pixels."""

    def __post_init__(self) -> None:
        """Refuse choices that nothing can build and ranges that hold no value."""
        for name, known in _CHOICES.items():
            _check_choices(name, getattr(self, name), known)
        for name in _COUNTS:
            _check_positive(name, getattr(self, name))
        for name, bounds in _BOUNDS.items():
            _check_range(name, getattr(self, name), bounds)
        for name in ("max_width", "max_stage_weights"):
            if getattr(self, name) < 1:
                raise SpaceError(f"space.{name} must be at least 1, got {getattr(self, name)}.")

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that two spaces share only if they ask the same."""
        content = json.dumps([SPACE_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


_CHOICES: Mapping[str, tuple[object, ...]] = {
    "families": get_args(Family),
    "stems": get_args(Stem),
    "kernel_sizes": (1, 3, 5, 7),
    "poolings": get_args(Pooling),
    "norms": get_args(Norm),
    "activations": get_args(Activation),
    "heads": get_args(Head),
    "initializations": get_args(Initialization),
    "optimizers": get_args(OptimizerName),
    "nesterov": (True, False),
    "schedules": get_args(ScheduleName),
    "averagings": get_args(Averaging),
    "flips": get_args(Flip),
    "policies": get_args(Policy),
    "mixings": get_args(Mixing),
}
_COUNTS = ("stem_widths", "logit_scales", "norm_bias_factors", "batch_sizes")
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "depth": (1, 8),
    "width": (1, 4096),
    "growth": (0.25, 8),
    "n_convolutions": (1, 8),
    "dropout": (0, 0.9),
    "learning_rate_factor": (1e-6, 1e6),
    "momentum": (0, 0.999),
    "weight_decay_factor": (0, 1000),
    "warmup": (0, 0.9),
    "label_smoothing": (0, 0.9),
    "crop": (0, 1),
    "rotation": (0, 180),
    "scale": (0, 0.9),
    "shear": (0, 60),
    "jitter": (0, 1),
    "erasing": (0, 1),
    "mixing_alpha": (0.01, 10),
    "early_size": (0.5, 1),
}


def _check_choices(name: str, values: tuple[object, ...], known: tuple[object, ...]) -> None:
    """Refuse values that are not known, and fields that leave no choice at all."""
    _check_not_empty(name, values)
    for value in values:
        if value not in known:
            raise SpaceError(
                f"space.{name} must be among {', '.join(map(str, known))}, got {value!r}."
            )


def _check_positive(name: str, values: tuple[float, ...]) -> None:
    """Refuse numbers of 0 and less."""
    _check_not_empty(name, values)
    for value in values:
        if value <= 0:
            raise SpaceError(f"space.{name} must hold numbers above 0, got {value}.")


def _check_not_empty(name: str, values: tuple[object, ...]) -> None:
    """Refuse no value and the same value twice, which would be asked for twice as often."""
    if not values or len(set(values)) < len(values):
        raise SpaceError(f"space.{name} must hold different values, at least one, got {values}.")


def _check_range(name: str, values: tuple[float, ...], bounds: tuple[float, float]) -> None:
    """Refuse what is not (lowest, highest) within bounds."""
    if len(values) != 2 or not bounds[0] <= values[0] <= values[1] <= bounds[1]:
        raise SpaceError(
            f"space.{name} must be two numbers, the lower one first, from {bounds[0]:g} to "
            f"{bounds[1]:g}, got {values}."
        )

"""The shape of one network."""

from dataclasses import dataclass
from typing import Literal

from spaces.errors import SpaceError
from spaces.strict import STRICT

Family = Literal["plain", "residual"]
Stem = Literal["convolution", "pooled", "whitening"]
Pooling = Literal["max", "average", "stride"]
Norm = Literal["batch", "group", "none"]
Activation = Literal["relu", "leaky_relu", "gelu", "silu"]
Head = Literal["max", "average"]
Initialization = Literal["he", "xavier", "identity"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One group of convolutions at one resolution; it begins by halving the resolution."""

    __pydantic_config__ = STRICT

    width: int
    """Channels that leave the stage."""
    kernel_size: int
    """Height and width of its convolutions: 3, 5 or 7."""
    n_convolutions: int
    """Convolutions in the stage, at least 1."""

    def __post_init__(self) -> None:
        """Refuse sizes that no builder accepts."""
        if self.width < 1 or self.n_convolutions < 1:
            raise SpaceError(
                "a stage needs a width and a number of convolutions of at least 1, "
                f"got {self.width} and {self.n_convolutions}."
            )
        if self.kernel_size not in (1, 3, 5, 7):
            raise SpaceError(f"stage.kernel_size must be 1, 3, 5 or 7, got {self.kernel_size}.")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of one network."""

    __pydantic_config__ = STRICT

    family: Family
    """`residual` adds each stage's input around its later convolutions."""
    stem: Stem
    """`whitening` freezes the first filters at the principal patches of the training images;
    `pooled` halves the resolution at once, as networks of tutorials do: a third less work."""
    stem_width: int
    """Channels after a trained stem; a `whitening` stem sets its own number."""
    stages: tuple[Stage, ...]
    """One entry for each resolution, the first one next to the stem."""
    pooling: Pooling
    """How a stage halves the resolution; pooling comes before normalization (1.2 times faster)."""
    norm: Norm
    activation: Activation
    head: Head
    """Global pooling before the linear layer."""
    dropout: float
    """Share of features dropped before the linear layer, in [0, 1)."""
    initialization: Initialization
    """`identity`: the first filters of each convolution pass their input on (Dirac)."""
    logit_scale: float
    """Factor on the outputs of the linear layer."""

    def __post_init__(self) -> None:
        """Refuse shapes that no builder accepts."""
        if not self.stages:
            raise SpaceError("architecture.stages must hold at least one stage, got none.")
        if not 0 <= self.dropout < 1:
            raise SpaceError(f"architecture.dropout must be in [0, 1), got {self.dropout}.")
        if self.stem_width < 1:
            raise SpaceError(f"architecture.stem_width must be at least 1, got {self.stem_width}.")
        if self.logit_scale <= 0:
            raise SpaceError(f"architecture.logit_scale must be above 0, got {self.logit_scale}.")


def stem_stride(image_size: int) -> int:
    """Return the stride of the first layer: the smallest power of 2 that leaves 48 px or less.

    So every stage costs about as much for photos of 224 px as for images of 32 px.
    """
    stride = 1
    while image_size > 48 * stride:
        stride *= 2
    return stride


def n_whitening_filters(channels: int, stride: int) -> int:
    """Return the channels after a whitening stem: principal directions and their negatives.

    Patches of 2x2 pixels have 4 directions for each channel, and all are kept. Of larger ones
    the leading 16 at most: they carry nearly all the variance, and keep the next layer cheap.
    """
    return 2 * channels * min(4 * stride, 16)

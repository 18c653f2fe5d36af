"""The pieces of the convolutional networks: the stem, the stages and what they are made of.

The order inside a block is the measured fast one: the first convolution of a stage is followed by
pooling, then norm and activation, so both work on a quarter of the pixels (1.2 times faster than
convolution, norm, activation, pooling).
"""

from collections.abc import Callable, Mapping
from math import gcd

from jaxtyping import Float
from torch import Tensor, nn

from spaces.architecture import (
    Activation,
    Architecture,
    Norm,
    Stage,
    n_whitening_filters,
    stem_stride,
)
from spaces.task import Task


class WhiteningConvolution(nn.Conv2d):
    """A first layer whose weights are frozen: principal patches and their negatives.

    Only its bias is trained. `spaces.networks.initialization.whiten` sets the weights.
    """

    def __init__(self, in_channels: int, *, stride: int) -> None:
        kernel_size = {1: 2, 2: 4}.get(stride, stride)
        super().__init__(
            in_channels, n_whitening_filters(in_channels, stride), kernel_size, stride
        )
        self.weight.requires_grad_(False)  # noqa: FBT003


class ResidualStage(nn.Module):
    """A stage that adds the input of its later convolutions to what leaves them."""

    def __init__(self, first: nn.Module, later: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.later = later
        self.after = after

    def forward(
        self, features: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images filters rows columns"]:
        """Return the features of the next resolution."""
        first: Tensor = self.first(features)
        total: Tensor = self.after(first + self.later(first))
        return total


def build_stem(architecture: Architecture, task: Task) -> tuple[nn.Sequential, int, int]:
    """Build the first layer of a network.

    Returns:
        The layer, the channels that leave it, and the height and width that leave it.
    """
    stride = stem_stride(task.image_size)
    convolution: nn.Conv2d
    if architecture.stem == "whitening":
        convolution = WhiteningConvolution(task.channels, stride=stride)
        layers = [convolution, build_activation(architecture.activation)]
        size = (task.image_size - convolution.kernel_size[0]) // stride + 1
    else:
        width, norm = architecture.stem_width, architecture.norm
        convolution = _convolution(task.channels, width, max(3, stride + 1), norm, stride=stride)
        size = -(-task.image_size // stride)
        is_pooled = architecture.stem == "pooled" and size >= 4
        layers = [
            convolution,
            *([nn.MaxPool2d(2)] if is_pooled else []),
            *_build_norm(norm, width),
            build_activation(architecture.activation),
        ]
        size = size // 2 if is_pooled else size
    return nn.Sequential(*layers), convolution.out_channels, size


def build_stage(
    architecture: Architecture, stage: Stage, in_channels: int, size: int, *, residual: bool
) -> tuple[nn.Module, int]:
    """Build one stage.

    Args:
        architecture: The network that the stage belongs to.
        stage: Which of its stages.
        in_channels: Channels that enter.
        size: Height and width that enter.
        residual: Add the input of the later convolutions to their output. The last activation
            then comes after the sum, as in He et al. 2016, figure 2. A stage of one convolution
            has no later ones, so it is the same with and without.

    Returns:
        The stage, and the height and width that leave it. At 2 or 3 pixels it does not halve.
    """
    norm, width, kernel_size = architecture.norm, stage.width, stage.kernel_size
    halves, strided = size >= 4, architecture.pooling == "stride"
    first: list[nn.Module] = [
        _convolution(in_channels, width, kernel_size, norm, stride=2 if halves and strided else 1)
    ]
    if halves and architecture.pooling == "max":
        first.append(nn.MaxPool2d(2))
    elif halves and architecture.pooling == "average":
        first.append(nn.AvgPool2d(2))
    first += [*_build_norm(norm, width), build_activation(architecture.activation)]
    later: list[nn.Module] = []
    for _ in range(stage.n_convolutions - 1):
        later += [
            _convolution(width, width, kernel_size, norm),
            *_build_norm(norm, width),
            build_activation(architecture.activation),
        ]
    if halves:
        size = (size + 1) // 2 if strided else size // 2
    if residual and later:
        *before, last = later
        return ResidualStage(nn.Sequential(*first), nn.Sequential(*before), last), size
    return nn.Sequential(*first, *later), size


def build_activation(activation: Activation) -> nn.Module:
    """Build one activation; those that can work in place do, which saves memory."""
    return _ACTIVATIONS[activation]()


_ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.1, inplace=True),
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
}


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, norm: Norm, *, stride: int = 1
) -> nn.Conv2d:
    """Build a convolution that keeps the size; a norm after it makes a bias of its own idle."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=kernel_size // 2,
        bias=norm == "none",
    )


def _build_norm(norm: Norm, width: int) -> list[nn.Module]:
    """Build the norm of one layer, if it has any.

    Batch norm follows airbench (Jordan 2024) where that suits every recipe of the space: the
    scale is frozen at 1, since the next convolution can take it up, so that the biases, which
    are trained up to 64 times faster, are all there is to train. Two values differ. The running
    statistics follow each batch by 0.2 (airbench 0.4, torch 0.1): they must forget the start
    within a training of a few dozen steps, and average enough batches of 64 images. And eps is
    torch's 1e-5 (airbench 1e-12): the variances here are around 1, where it makes no
    difference, but the constant border of scanned digits must not become noise.

    Group norm keeps its trained scale; groups hold at least 4 channels, since with one channel
    each global average pooling would see nothing but the bias.
    """
    if norm == "batch":
        batch_norm = nn.BatchNorm2d(width, momentum=0.2)
        batch_norm.weight.requires_grad_(False)  # noqa: FBT003
        return [batch_norm]
    if norm == "group":
        return [nn.GroupNorm(gcd(width, max(1, min(8, width // 4))), width)]
    return []

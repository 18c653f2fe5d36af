"""The weights that a network starts from."""

from collections.abc import Callable, Mapping
from math import sqrt

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from spaces.architecture import Architecture, Initialization
from spaces.networks.blocks import WhiteningConvolution

_EPS = 5e-4
"""Keeps directions of patches that hardly vary from being blown up (airbench's value)."""

_N_PIXELS_AT_ONCE = 1 << 20


def initialize(network: nn.Module, architecture: Architecture, generator: Generator) -> None:
    """Draw all weights of a network anew; norms start as the identity, biases at 0.

    * `he`: normal, for layers followed by a rectifier (He et al. 2015).
    * `xavier`: uniform (Glorot and Bengio 2010).
    * `identity`: the first filters of each convolution pass on its input channels, the rest and
      the linear layer are torch's default (Jordan 2024, section 3.2).

    Args:
        network: A network of `build_network`, on the device of the generator; changed in place.
        architecture: What it was built from.
        generator: Source of all randomness; the global one is not touched.
    """
    draw = _DRAWS[architecture.initialization]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw(module, generator)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def whiten(network: nn.Module, images: Float[Tensor, "images channels height width"]) -> None:
    """Set the frozen first filters to the principal patches of the training images.

    They are the eigenvectors of the covariance of the patches that the layer sees, divided by
    the square root of the eigenvalue plus 5e-4, and their negatives; so its outputs are, over
    these images, uncorrelated and of about unit variance. A network with another stem stays as
    it is, so that a caller need not ask.

    Args:
        network: A network of `build_network`; changed in place.
        images: Normalized training images; 5000 are plenty.

    Source:
        Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.1. As there,
        the mean is not subtracted: the images are normalized. Unlike there, a patch of more
        than 2x2 pixels keeps only its leading directions.
    """
    for module in network.modules():
        if isinstance(module, WhiteningConvolution):
            filters = _principal_filters(module, images)
            module.weight.copy_(torch.cat([filters, -filters]))


def _principal_filters(
    convolution: WhiteningConvolution, images: Tensor
) -> Float[Tensor, "directions channels height width"]:
    """Return the whitening filters, the direction of largest variance first."""
    n_weights = convolution.weight[0].numel()
    moment = torch.zeros(n_weights, n_weights, dtype=torch.float64)
    n_patches = 0
    n_at_once = max(1, _N_PIXELS_AT_ONCE // images[0].numel())
    for batch in images.float().split(n_at_once):
        patches = F.unfold(batch, convolution.kernel_size, stride=convolution.stride)
        rows = patches.transpose(1, 2).reshape(-1, n_weights)
        moment += (rows.T @ rows).double().cpu()
        n_patches += len(rows)
    # In float64 on the CPU: small, and the same on every device.
    eigenvalues, eigenvectors = torch.linalg.eigh(moment / n_patches)
    scaled = eigenvectors / (eigenvalues.clamp(min=0) + _EPS).sqrt()
    leading: Tensor = scaled.T.flip(0)[: convolution.out_channels // 2]
    return leading.reshape(-1, *convolution.weight.shape[1:])


def _draw_he(layer: nn.Conv2d | nn.Linear, generator: Generator) -> None:
    """Keep the variance of the signal through a rectifier; the linear layer has none."""
    gain = nn.init.calculate_gain("relu" if isinstance(layer, nn.Conv2d) else "linear")
    std = gain / sqrt(layer.weight[0].numel())
    nn.init.normal_(layer.weight, std=std, generator=generator)


def _draw_xavier(layer: nn.Conv2d | nn.Linear, generator: Generator) -> None:
    """Balance the variance of the signal and of its gradient."""
    nn.init.xavier_uniform_(layer.weight, generator=generator)


def _draw_identity(layer: nn.Conv2d | nn.Linear, generator: Generator) -> None:
    """Torch's default, then a filter for each input channel that passes it on."""
    nn.init.kaiming_uniform_(layer.weight, a=sqrt(5), generator=generator)
    if isinstance(layer, nn.Conv2d):
        nn.init.dirac_(layer.weight[: layer.in_channels])


_DRAWS: Mapping[Initialization, Callable[[nn.Conv2d | nn.Linear, Generator], None]] = {
    "he": _draw_he,
    "identity": _draw_identity,
    "xavier": _draw_xavier,
}

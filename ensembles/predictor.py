"""Networks + images -> log-probabilities: the one forward pass of the project.

Search uses it for validation, export for the self-test, `predict` for new photos. So the number
that chose a member is the number that the member gives later.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from spaces.transforms import normalize


def predict_log_probabilities(
    network: nn.Module,
    images: UInt8[Tensor, "n h w c"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int = 500,
    autocast_dtype: torch.dtype | None = None,
) -> Float[Tensor, "n classes"]:
    """Run one network over images, without gradients and in `eval()` mode.

    Args:
        network: Takes normalized float images, gives logits. Its mode is restored afterwards.
        images: Pixels at the network's size, on any device; they travel batch by batch.
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        batch_size: Images in one forward pass.
        autocast_dtype: Lower precision for the network itself, or None for float32.

    Returns:
        Natural logarithms of the class probabilities, float32, on the network's device.
    """
    device = _device_of(network, default=images.device)
    batches = []
    with (
        _evaluating(network),
        torch.inference_mode(),
        torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None),
    ):
        for batch in images.split(batch_size):
            pixels = normalize(batch.to(device, non_blocking=True), mean, std)
            logits = network(pixels)
            # bf16 has 8 bits of mantissa: the softmax is float32 whatever the network ran in.
            batches.append(logits.float().log_softmax(dim=1))
    return torch.cat(batches)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Hold every module in `eval()` mode, then give each its own mode back."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _device_of(network: nn.Module, *, default: torch.device) -> torch.device:
    """Return where the network's weights are."""
    first = next(network.parameters(), None)
    return default if first is None else first.device

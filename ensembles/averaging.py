"""One network from the weights of several that share their start.

Running statistics of batch norms are no weights: the average of those of several networks is not
what the averaged network sees. So they are estimated anew.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from spaces.transforms import normalize


def average_weights(networks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each tensor; counters are those of the first network.

    Args:
        networks: Their `state_dict`s, of equal names and shapes; one or more.
    """
    first, *others = networks
    return {
        # In double precision, so that the order of the networks hardly matters.
        name: torch.stack([tensor.double(), *(each[name].double() for each in others)])
        .mean(dim=0)
        .to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }


@torch.no_grad()
def reestimate_norms(
    network: nn.Module,
    batches: Iterable[UInt8[Tensor, "n h w c"]],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Set the running statistics of batch norms to their means over some images.

    As `torch.optim.swa_utils.update_bn`, but everything else is in `eval()` mode: without dropout,
    the statistics are those of the network that will predict.

    Args:
        network: Changed in place, and left in `eval()` mode; without batch norms, nothing else is
            done.
        batches: Pixels of training images, of all classes in each batch, and of equal numbers.
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel, on the same scale.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    for batch in batches:
        network(normalize(batch, mean, std))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()

"""The table from the family of a network to its builder."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from spaces.architecture import Architecture, Family
from spaces.networks.convnet import ConvNet
from spaces.task import Task

BUILDERS: Mapping[Family, Callable[[Architecture, Task], nn.Module]] = {
    "plain": partial(ConvNet, residual=False),
    "residual": partial(ConvNet, residual=True),
}


def build_network(architecture: Architecture, task: Task) -> nn.Module:
    """Build an untrained network.

    Its weights are torch's defaults, drawn from the global generator; `initialize` of
    `spaces.networks.initialization` draws them anew from a given one.

    Args:
        architecture: The shape of the network.
        task: Size and channels of the images it gets, and the number of classes.

    Returns:
        A module from normalized float images (images, channels, height, width), in any memory
        format, to logits (images, classes).
    """
    return BUILDERS[architecture.family](architecture, task)

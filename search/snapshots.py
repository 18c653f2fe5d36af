"""Which weights of a training are kept besides those of its best round.

Late rounds of one training lie in the same valley, where an average of weights is a network too
(Wortsman et al. 2022; Izmailov et al. 2018), and err a little differently. Until the trial ends
they are in memory and in its checkpoint; so an interrupted trial leaves what an unbroken one does.
"""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from spaces.recipe import Recipe

Weights: TypeAlias = dict[str, Tensor]

RAW = "raw"
"""Name of the snapshot of the best round without averaging."""


def snapshot_rounds(n_rounds: int, n_snapshots: int) -> frozenset[int]:
    """Return the rounds to keep, evenly over the second half of the schedule; the last is one.

    >>> sorted(snapshot_rounds(24, 3))
    [16, 20, 24]
    """
    parts = range(n_snapshots + 1, 2 * n_snapshots + 1)
    return frozenset(-(-n_rounds * part // (2 * n_snapshots)) for part in parts)


def most_networks(recipe: Recipe, n_snapshots: int) -> int:
    """Return the networks that a trial may leave, its best one included."""
    averages = recipe.optimizer.averaging != "none"
    return 1 + n_snapshots + (averages and n_snapshots > 0)


def copy_weights(network: nn.Module) -> Weights:
    """Return copies of everything that a network has learned."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def differing(snapshots: Mapping[str, Weights], best: Weights) -> dict[str, Weights]:
    """Leave out what equals the best round: itself, and `raw` where the average caught up.

    Lookahead sets the weights back to their average every few steps, so at the end of a round they
    are often the same.
    """
    return {
        name: weights
        for name, weights in snapshots.items()
        if any(not torch.equal(weights[key], tensor) for key, tensor in best.items())
    }

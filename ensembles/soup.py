"""Soups: averages of the weights of one training, each of them one network like any other.

In a pool, a model whose name begins with `soup-` is one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SOUP_PREFIX = "soup-"


def is_soup(name: str) -> bool:
    """Tell whether a model is an average of weights, by its name."""
    return name.startswith(SOUP_PREFIX)


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What goes into a soup."""

    chosen: tuple[int, ...]
    """Indices of networks, in the order in which they were added; one: no average was better."""
    log_loss: float
    """Of their average on the held-out images, in nats."""


def select_ingredients(
    losses: Sequence[float], evaluate: Callable[[tuple[int, ...]], float]
) -> Ingredients:
    """Add the networks in the order of their log-loss, each only if the average gains by it.

    Args:
        losses: Held-out log-loss of each network alone.
        evaluate: Returns the held-out log-loss of the average of some networks; asked once for
            each of them but the best.

    Returns:
        The networks to average.

    Source:
        Wortsman et al. 2022, "Model soups", recipe 1. Unlike there, log-loss decides and not
        accuracy, and a network that changes nothing stays out.
    """
    best, *others = (int(index) for index in np.argsort(losses, kind="stable"))
    found = Ingredients(chosen=(best,), log_loss=losses[best])
    for index in others:
        longer = (*found.chosen, index)
        if (loss := evaluate(longer)) < found.log_loss:
            found = Ingredients(chosen=longer, log_loss=loss)
    return found

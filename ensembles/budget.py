"""What an ensemble may cost: how many members, how much of each limited resource."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int

from ensembles.errors import EnsembleError


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One resource, of which the members together may use so much."""

    name: str
    """What is limited, with its unit, for messages: "latency in ms"."""
    costs: tuple[float, ...]
    """One for each model of the pool, at least 0."""
    maximum: float
    """Above 0."""

    def __post_init__(self) -> None:
        """Refuse a limit that is none."""
        if not self.maximum > 0 or not all(np.isfinite(cost) and cost >= 0 for cost in self.costs):
            raise EnsembleError(
                f"a limit of {self.name} needs a maximum above 0 and finite costs of at least 0, "
                f"got {self.maximum}."
            )

    def select(self, indices: Int[np.ndarray, " chosen"]) -> "Limit":
        """Return the limit for some of the models, in the order asked for."""
        chosen = tuple(self.costs[index] for index in indices)
        return Limit(name=self.name, costs=chosen, maximum=self.maximum)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """All that limits an ensemble."""

    max_members: int
    limits: tuple[Limit, ...] = ()

    def fits(self, members: Collection[int]) -> bool:
        """Tell whether an ensemble of these models stays within every limit."""
        return len(members) <= self.max_members and all(
            sum(limit.costs[member] for member in members) <= limit.maximum * (1 + 1e-9)
            for limit in self.limits
        )

    def shares(self, members: Collection[int]) -> Float64[np.ndarray, " members"]:
        """Return how much of the budget each member uses: the mean over all that is limited."""
        each = [np.full(len(members), 1 / self.max_members)]
        each += [
            np.array([limit.costs[member] for member in members]) / limit.maximum
            for limit in self.limits
        ]
        shares: np.ndarray = np.mean(each, axis=0)
        return shares

    def spared(self, part: float) -> "Budget":
        """Return a budget of as many members, with a part of everything else."""
        limits = (replace(limit, maximum=limit.maximum * part) for limit in self.limits)
        return replace(self, limits=tuple(limits))

    def take(self, ranking: Sequence[int] | Int[np.ndarray, " models"]) -> list[int]:
        """Return the models of a ranking that fit, each beside those taken before it."""
        taken: list[int] = []
        for index in ranking:
            if self.fits([*taken, int(index)]):
                taken.append(int(index))
        return taken

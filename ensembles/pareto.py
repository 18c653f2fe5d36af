"""What accuracy costs: the ensembles that no other beats at their price.

One ensemble is fitted for each budget, in costs of the best single model: its members are chosen
within the budget, so a small budget has members of its own and not the first of a large one's.
Which of them are beaten is decided on the fitting images; the figures of those that are left come
from other images, so they need not rise from one to the next.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import ConfigDict

from ensembles.budget import Limit
from ensembles.builder import MAX_MEMBERS, Ensemble, build, choose_method
from ensembles.comparison import Interval, find_wilson_interval
from ensembles.documents import read_document
from ensembles.errors import EnsembleError
from ensembles.methods import Method
from ensembles.metrics import accuracy, log_loss
from ensembles.pool import Pool

BUDGETS = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
"""In costs of the best single model."""


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """An ensemble, what it costs, and how good it is on images that it was not fitted on."""

    ensemble: Ensemble
    budget: float
    """The smallest under which it was found, in costs of the best single model."""
    cost: float
    """Of its members together, in costs of the best single model."""
    totals: dict[str, float]
    """What its members need together of each resource, such as milliseconds and bytes."""
    accuracy: float
    accuracy_interval: Interval
    """Wilson's, 95 %."""
    log_loss: float
    fitted_log_loss: float
    """On the images that it was fitted on: flattering, but what decided that it is not beaten."""


@dataclass(frozen=True, kw_only=True)
class Front:
    """Ensembles of rising cost, of which each is better than all cheaper ones."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    resource: str
    """What the budgets are of."""
    single: str
    """The best single model, whose cost is 1."""
    single_cost: float
    """Of the resource, in its own unit."""
    n_images: int
    """How many images the figures are from."""
    points: tuple[FrontPoint, ...]

    def to_json(self) -> dict[str, object]:
        """Return the front as JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> "Front":
        """Read a front from JSON values.

        Raises:
            EnsembleError: A key is missing or unknown, or a value is of the wrong kind.
        """
        return read_document(cls, values, what="front of ensembles")


def find_front(  # noqa: PLR0913 - two pools, and what `build` takes
    pool: Pool,
    costs: Mapping[str, Sequence[float]],
    *,
    test_pool: Pool,
    budgets: Sequence[float] = BUDGETS,
    method: Method | Literal["auto"] = "auto",
    max_members: int = MAX_MEMBERS,
    seed: int = 0,
) -> Front:
    """Fit an ensemble under each budget, and keep those that no cheaper one equals.

    Args:
        pool: The images to fit on.
        costs: One number per model of the pool, for each resource; the budgets are of the first
            resource, the others are only summed up.
        test_pool: Other images, with predictions of the same models.
        budgets: Of the first resource, in costs of the best single model.
        method: What to fit; `auto` follows the rule of `build`. Not a vote, whose shares of
            votes have no log-loss to compare.
        max_members: Members at the most, however large the budget.
        seed: Of bagging and cross-fitting.

    Returns:
        The front, from the cheapest to the dearest.

    Raises:
        EnsembleError: Costs or budgets that cannot be used, a vote, a model that the other
            images have no predictions of, or a method that needs more images.
    """
    chosen: Method = choose_method(pool) if method == "auto" else method
    _check(pool, costs, budgets, chosen)
    resource = next(iter(costs))
    single = build(pool, method="single", seed=seed)
    unit = float(costs[resource][single.members[0]])
    points: list[FrontPoint] = []
    for budget in sorted(set(budgets)):
        limit = Limit(
            name=resource, costs=tuple(map(float, costs[resource])), maximum=budget * unit
        )
        ensemble = build(pool, method=chosen, max_members=max_members, limits=[limit], seed=seed)
        if all(set(ensemble.members) != set(point.ensemble.members) for point in points):
            points.append(_measure(ensemble, pool, costs, test_pool, budget=budget, unit=unit))
    return Front(
        resource=resource,
        single=single.names[0],
        single_cost=unit,
        n_images=test_pool.n_images,
        points=_drop_dominated(points),
    )


def check_front_method(method: Method | Literal["auto"]) -> None:
    """Refuse a method whose ensembles a front cannot compare.

    Raises:
        EnsembleError: It is a vote.
    """
    if method in ("vote", "weighted_vote"):
        raise EnsembleError("votes have no log-loss, so a front cannot compare them.")


def _check(
    pool: Pool, costs: Mapping[str, Sequence[float]], budgets: Sequence[float], method: Method
) -> None:
    check_front_method(method)
    if not costs:
        raise EnsembleError("a front needs the costs of at least one resource, got none.")
    for name, values in costs.items():
        if len(values) != pool.n_models or not all(0 < value < math.inf for value in values):
            raise EnsembleError(
                f"{name}: a pool of {pool.n_models} needs {pool.n_models} finite costs above 0, "
                f"got {list(values)}."
            )
    if not budgets or not all(0 < budget < math.inf for budget in budgets):
        raise EnsembleError(
            f"a front needs budgets above 0, in best single models, got {list(budgets)}."
        )


def _measure(
    ensemble: Ensemble,
    pool: Pool,
    costs: Mapping[str, Sequence[float]],
    test_pool: Pool,
    *,
    budget: float,
    unit: float,
) -> FrontPoint:
    totals = {
        name: float(sum(values[member] for member in ensemble.members))
        for name, values in costs.items()
    }
    predicted = ensemble.predict(test_pool)
    right = accuracy(predicted, test_pool.labels)
    n_right = round(right * test_pool.n_images)
    return FrontPoint(
        ensemble=ensemble,
        budget=budget,
        cost=next(iter(totals.values())) / unit,
        totals=totals,
        accuracy=right,
        accuracy_interval=find_wilson_interval(n_right, test_pool.n_images),
        log_loss=log_loss(predicted, test_pool.labels),
        fitted_log_loss=log_loss(ensemble.predict(pool), pool.labels),
    )


def _drop_dominated(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Keep the points that are better than every point that costs no more."""
    kept: list[FrontPoint] = []
    for point in sorted(points, key=lambda each: (each.cost, each.fitted_log_loss)):
        if not kept or point.fitted_log_loss < kept[-1].fitted_log_loss:
            kept.append(point)
    return tuple(kept)

"""From a pool to an ensemble: one entry for every method.

Which method is exported follows from a rule, not from a race: the winner of a cross-validated
race over seven methods promised 0.101 nats and gave 0.154, where the rule's choice gave 0.128.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float64
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from ensembles.calibration import fit_temperature
from ensembles.combination import Combination, Space
from ensembles.errors import EnsembleError
from ensembles.log_linear import fit_log_linear
from ensembles.methods import Method
from ensembles.pool import Pool
from ensembles.selection import rank_models, select_best, select_by_bagging, select_greedily
from ensembles.stacking import count_images_needed, fit_stack
from ensembles.weighting import fit_shrunk, select_simplex

METHODS: tuple[Method, ...] = get_args(Method)
MAX_CANDIDATES = 64
"""The models of lowest log-loss that a method gets to see."""
MAX_MEMBERS = 5
MIN_ERRORS_FOR_LLP = 50
"""Errors of the best model among the fitting images: the real sample size of a fit. Bagging won
at 14, the log-linear pool at 64; 50 lies between."""


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Some models of a pool, and how their predictions become one."""

    method: Method
    members: tuple[int, ...]
    """Their indices in the pool that the ensemble was fitted on, heaviest first."""
    names: tuple[str, ...]
    """Their names, in the same order."""
    combination: Combination
    n_images: int
    """How many images it was fitted on."""

    def predict(self, pool: Pool) -> Float[np.ndarray, "images classes"]:
        """Combine the members' predictions in a pool that holds them by name.

        Raises:
            EnsembleError: A member is not in the pool.
        """
        return self.combination.combine(pool.select_names(self.names).log_probabilities)


def build(
    pool: Pool,
    *,
    method: Method | Literal["auto"] = "auto",
    max_members: int = MAX_MEMBERS,
    seed: int = 0,
) -> Ensemble:
    """Fit one ensemble.

    Args:
        pool: Predictions for images that no model was trained, stopped or chosen on.
        method: What to fit; `auto` follows `choose_method`.
        max_members: Most models that a prediction may need.
        seed: Of bagging and cross-fitting.

    Returns:
        The ensemble; every member has a weight above 0.

    Raises:
        EnsembleError: `max_members` is below 1, or there are too few images for the method.
    """
    if max_members < 1:
        raise EnsembleError(f"max_members must be at least 1, got {max_members}.")
    chosen: Method = choose_method(pool) if method == "auto" else method
    refused = explain_refusal(pool, chosen)
    if refused is not None:
        raise EnsembleError(refused)
    candidates = rank_models(pool)[:MAX_CANDIDATES]
    # In the pool's order, so that of two equal models it is the first that is chosen.
    candidates = np.sort(candidates)
    # Two threads on a busy machine made one fit take 3.7 s instead of 0.01 s.
    with threadpool_limits(1):
        part = pool.select(candidates)
        fitter = _FITTERS[chosen]
        weights = fitter.fit(part, max_members, seed)
        order = np.lexsort((np.arange(part.n_models), -weights))
        order = order[: np.count_nonzero(weights)]
        combination = _combine_members(chosen, part.select(order), weights[order], seed)
    members = candidates[order]
    return Ensemble(
        method=chosen,
        members=tuple(int(member) for member in members),
        names=tuple(pool.names[member] for member in members),
        combination=combination,
        n_images=pool.n_images,
    )


def build_all(
    pool: Pool, *, max_members: int = MAX_MEMBERS, seed: int = 0
) -> dict[Method, Ensemble]:
    """Fit every method that the pool has enough images for; `explain_refusal` tells of the rest.

    Args:
        pool: Predictions for images that no model was trained, stopped or chosen on.
        max_members: Most models that a prediction may need.
        seed: Of bagging and cross-fitting.

    Returns:
        The ensembles, in the order of `METHODS`.

    Raises:
        EnsembleError: `max_members` is below 1.
    """
    return {
        method: build(pool, method=method, max_members=max_members, seed=seed)
        for method in METHODS
        if explain_refusal(pool, method) is None
    }


def choose_method(pool: Pool) -> Method:
    """Choose by the number of errors that the best model makes: fewer than 50, or more."""
    return "bagged_greedy" if count_best_errors(pool) < MIN_ERRORS_FOR_LLP else "llp"


def count_best_errors(pool: Pool) -> int:
    """Count the images that the model of lowest log-loss gets wrong."""
    best = int(rank_models(pool)[0])
    predictions = pool.log_probabilities[best].argmax(axis=1)
    return int((predictions != pool.labels).sum())


def explain_refusal(pool: Pool, method: Method) -> str | None:
    """Say why a method cannot be fitted on a pool; None if it can."""
    needed = count_images_needed(pool.n_classes)
    if method == "stack" and pool.n_images < needed:
        return (
            f"stacking {pool.n_classes} classes needs at least {needed} images to fit on, "
            f"got {pool.n_images}."
        )
    return None


Fit = Callable[[Pool, int, int], Float64[np.ndarray, " models"]]


@dataclass(frozen=True, kw_only=True)
class _Fitter:
    """How a method finds weights, from a pool, a limit of members and a seed."""

    fit: Fit
    space: Space
    scaled: bool
    """Whether a temperature follows; a method whose weights have no fixed sum has its own."""


_FITTERS: Mapping[Method, _Fitter] = {
    "single": _Fitter(
        fit=lambda pool, _max_members, _seed: select_best(pool, max_members=1),
        space="probability",
        scaled=True,
    ),
    "vote": _Fitter(
        fit=lambda pool, max_members, _seed: select_best(pool, max_members=max_members),
        space="vote",
        scaled=False,
    ),
    "soft": _Fitter(
        fit=lambda pool, max_members, _seed: select_best(pool, max_members=max_members),
        space="probability",
        scaled=True,
    ),
    "logit": _Fitter(
        fit=lambda pool, max_members, _seed: select_best(pool, max_members=max_members),
        space="logarithm",
        scaled=True,
    ),
    "weighted": _Fitter(
        fit=lambda pool, max_members, _seed: _weight_best(pool, max_members),
        space="probability",
        scaled=True,
    ),
    "simplex": _Fitter(
        fit=lambda pool, max_members, _seed: select_simplex(
            pool.true_class(), max_members=max_members
        ),
        space="probability",
        scaled=True,
    ),
    "greedy": _Fitter(
        fit=lambda pool, max_members, _seed: select_greedily(
            pool.true_class(), pool.costs, max_members=max_members
        ),
        space="probability",
        scaled=True,
    ),
    "bagged_greedy": _Fitter(
        fit=lambda pool, max_members, seed: select_by_bagging(
            pool.true_class(), pool.costs, max_members=max_members, seed=seed
        ),
        space="probability",
        scaled=True,
    ),
    "llp": _Fitter(
        fit=lambda pool, max_members, _seed: fit_log_linear(pool, max_members=max_members),
        space="logarithm",
        scaled=False,
    ),
    "stack": _Fitter(
        fit=lambda pool, max_members, _seed: fit_log_linear(pool, max_members=max_members),
        space="stack",
        scaled=False,
    ),
}


def _weight_best(pool: Pool, max_members: int) -> Float64[np.ndarray, " models"]:
    best = rank_models(pool)[:max_members]
    weights = np.zeros(pool.n_models)
    weights[best] = fit_shrunk(pool.select(best).true_class())
    return weights


def _combine_members(
    method: Method, members: Pool, weights: Float64[np.ndarray, " members"], seed: int
) -> Combination:
    fitter = _FITTERS[method]
    plain = tuple(float(weight) for weight in weights)
    if fitter.space == "stack":
        stacked = fit_stack(members, weights, seed=seed)
        return Combination(
            method=method,
            space="stack",
            weights=plain,
            class_weights=tuple(tuple(row) for row in stacked.class_weights.tolist()),
            class_biases=tuple(stacked.class_biases.tolist()),
        )
    pooled = Combination(method=method, space=fitter.space, weights=plain)
    if not fitter.scaled:
        return pooled
    log_probabilities = pooled.combine(members.log_probabilities)
    temperature = fit_temperature(log_probabilities, members.labels)
    return Combination(method=method, space=fitter.space, weights=plain, temperature=temperature)

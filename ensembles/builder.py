"""From a pool to an ensemble: one entry for every method.

Which method is exported follows from a rule, not from a race: the winner of a cross-validated
race over seven methods promised 0.101 nats and gave 0.154, where the rule's choice gave 0.128.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float64, Int
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from ensembles.budget import Budget, Limit
from ensembles.calibration import fit_temperature, log_loss_after_temperature
from ensembles.combination import Combination, Space
from ensembles.errors import EnsembleError
from ensembles.log_linear import fit_log_linear
from ensembles.methods import Method
from ensembles.pool import Pool
from ensembles.selection import (
    rank_models,
    select_best,
    select_by_accuracy,
    select_by_bagging,
    select_greedily,
)
from ensembles.soup import is_soup
from ensembles.stacking import count_images_needed, fit_stack
from ensembles.weighting import fit_shrunk, select_simplex

METHODS: tuple[Method, ...] = tuple(
    name for name in get_args(Method) if name not in ("seeds", "greedy_accuracy")
)
"""Those that are fitted on every pool. `seeds` is fitted on a pool of its own: networks of one
recipe, whose geometric mean it is; it is never chosen by itself, being the rival of what is.
`greedy_accuracy` is there for those who ask for it: it promises more than it keeps."""
MAX_CANDIDATES = 64
"""The models of lowest log-loss that a method gets to see."""
MAX_MEMBERS = 5
MIN_ERRORS_FOR_LLP = 50
"""Errors of the best model among the fitting images: the real sample size of a fit. Bagging won
at 14, the log-linear pool at 64; 50 lies between."""
IMAGES_PER_CLASS_FOR_STACK = 200
"""Where the class-wise weights of `stack` are worth fitting. Its log-loss on fresh images beside
that of the log-linear pool, for 64 models of 10 classes, mean and standard error of 8 splits: with
60 images a class -0.0006 +- 0.0005, with 100 -0.0010 +- 0.0006, with 200 -0.0021 +- 0.0007, with
519 -0.0050 +- 0.0005; its accuracy is the same or better."""


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

    def spread(self, networks: Mapping[str, Sequence[str]]) -> "Ensemble":
        """Return the ensemble of the networks behind the members.

        Args:
            networks: By the name of a member, the names of those that it is the mean of.

        Returns:
            An ensemble that `predict`s from a pool of the networks; `members` stay what they were
            fitted as.
        """
        behind = [networks[name] for name in self.names]
        return replace(
            self,
            names=tuple(name for names in behind for name in names),
            combination=self.combination.spread([len(names) for names in behind]),
        )


def build(
    pool: Pool,
    *,
    method: Method | Literal["auto"] = "auto",
    max_members: int = MAX_MEMBERS,
    limits: Sequence[Limit] = (),
    seed: int = 0,
) -> Ensemble:
    """Fit one ensemble.

    Args:
        pool: Predictions for images that no model was trained, stopped or chosen on.
        method: What to fit; `auto` follows `choose_method`.
        max_members: Most models that a prediction may need.
        limits: What the members together may cost.
        seed: Of bagging and cross-fitting.

    Returns:
        The ensemble; every member has a weight above 0.

    Raises:
        EnsembleError: There is no such method, `max_members` is below 1, no model fits the
            limits, or there are too few images for the method.
    """
    _check_wishes(method, max_members)
    chosen: Method = choose_method(pool) if method == "auto" else method
    refused = explain_refusal(pool, chosen, limits)
    if refused is not None:
        raise EnsembleError(refused)
    candidates = _eligible(pool, chosen, _rank_affordable(pool, limits))[:MAX_CANDIDATES]
    budget = Budget(
        max_members=max_members, limits=tuple(each.select(np.sort(candidates)) for each in limits)
    )
    # In the pool's order, so that of two equal models it is the first that is chosen.
    candidates = np.sort(candidates)
    # Two threads on a busy machine made one fit take 3.7 s instead of 0.01 s.
    with threadpool_limits(1):
        part = pool.select(candidates)
        fitter = _FITTERS[chosen]
        weights = fitter.fit(part, budget, seed)
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


def _check_wishes(method: str, max_members: int) -> None:
    if method not in ("auto", *_FITTERS):
        raise EnsembleError(f"method must be one of auto, {', '.join(_FITTERS)}, got {method!r}.")
    if not isinstance(max_members, int | np.integer):
        raise EnsembleError(f"max_members must be a whole number, got {max_members!r}.")
    if max_members < 1:
        raise EnsembleError(f"max_members must be at least 1, got {max_members}.")


def _rank_affordable(pool: Pool, limits: Sequence[Limit]) -> Int[np.ndarray, " candidates"]:
    """Return the models that fit the limits alone, best first."""
    for limit in limits:
        if len(limit.costs) != pool.n_models:
            raise EnsembleError(
                f"a limit of {limit.name} needs one cost for each of {pool.n_models} models, "
                f"got {len(limit.costs)}."
            )
        if min(limit.costs) > limit.maximum:
            raise EnsembleError(
                f"no model fits {limit.name} of at most {limit.maximum:g}: the cheapest needs "
                f"{min(limit.costs):.4g}."
            )
    alone = Budget(max_members=1, limits=tuple(limits))
    ranking = rank_models(pool)
    affordable = ranking[[alone.fits([int(index)]) for index in ranking]]
    if not len(affordable):
        raise EnsembleError("no model fits all limits at once.")
    return affordable


def _eligible(
    pool: Pool, method: Method, models: Int[np.ndarray, " candidates"]
) -> Int[np.ndarray, " eligible"]:
    """Return those of some models that a method may take."""
    if method != "soup":
        return models
    return models[[is_soup(pool.names[index]) for index in models]]


def build_all(
    pool: Pool,
    *,
    max_members: int = MAX_MEMBERS,
    limits: Sequence[Limit] = (),
    seed: int = 0,
) -> dict[Method, Ensemble]:
    """Fit every method that the pool has enough images for; `explain_refusal` tells of the rest.

    Args:
        pool: Predictions for images that no model was trained, stopped or chosen on.
        max_members: Most models that a prediction may need.
        limits: What the members together may cost.
        seed: Of bagging and cross-fitting.

    Returns:
        The ensembles, in the order of `METHODS`.

    Raises:
        EnsembleError: `max_members` is below 1, or no model fits the limits.
    """
    return {
        method: build(pool, method=method, max_members=max_members, limits=limits, seed=seed)
        for method in METHODS
        if explain_refusal(pool, method, limits) is None
    }


def choose_method(pool: Pool) -> Method:
    """Choose by what there is to learn from: errors of the best model, and images of each class.

    With fewer than 50 errors `bagged_greedy`; with more `llp`; with 200 images a class besides
    `stack`, which is `llp` with weights for each class.
    """
    if count_best_errors(pool) < MIN_ERRORS_FOR_LLP:
        return "bagged_greedy"
    return "stack" if pool.n_images >= IMAGES_PER_CLASS_FOR_STACK * pool.n_classes else "llp"


def count_best_errors(pool: Pool) -> int:
    """Count the images that the model of lowest log-loss gets wrong."""
    best = int(rank_models(pool)[0])
    predictions = pool.log_probabilities[best].argmax(axis=1)
    return int((predictions != pool.labels).sum())


def explain_refusal(pool: Pool, method: Method, limits: Sequence[Limit] = ()) -> str | None:
    """Say why a method cannot be fitted on a pool, within limits; None if it can.

    Raises:
        EnsembleError: No model at all fits the limits.
    """
    needed = count_images_needed(pool.n_classes)
    if method == "stack" and pool.n_images < needed:
        return (
            f"stacking {pool.n_classes} classes needs at least {needed} images to fit on, "
            f"got {pool.n_images}."
        )
    if method == "soup" and not any(map(is_soup, pool.names)):
        return "soup: no model is an average of weights; the name of one begins with 'soup-'."
    if method == "soup" and not len(_eligible(pool, method, _rank_affordable(pool, limits))):
        return "soup: none fits the limits."
    return None


Fit = Callable[[Pool, Budget, int], Float64[np.ndarray, " models"]]


@dataclass(frozen=True, kw_only=True)
class _Fitter:
    """How a method finds weights, from a pool, a budget and a seed."""

    fit: Fit
    space: Space
    scaled: bool
    """Whether a temperature follows; a method whose weights have no fixed sum has its own."""


def _fit_single(pool: Pool, budget: Budget, _seed: int) -> Float64[np.ndarray, " models"]:
    """Take the model of lowest log-loss after a temperature of its own.

    The rival of all ensembles must be the strongest there is, and each row of a table has its
    temperature: label smoothing alone costs a model 0.2 nats that one number gives back.
    """
    losses = [log_loss_after_temperature(each, pool.labels) for each in pool.log_probabilities]
    ranking = np.lexsort((np.arange(pool.n_models), pool.costs, np.array(losses)))
    weights = np.zeros(pool.n_models)
    weights[Budget(max_members=1, limits=budget.limits).take(ranking)] = 1
    return weights


def _fit_best(pool: Pool, budget: Budget, _seed: int) -> Float64[np.ndarray, " models"]:
    return select_best(pool, max_members=budget.max_members, limits=budget.limits)


def _fit_weighted(pool: Pool, budget: Budget, seed: int) -> Float64[np.ndarray, " models"]:
    weights = _fit_best(pool, budget, seed)
    best = np.flatnonzero(weights)
    weights[best] = fit_shrunk(pool.select(best).true_class())
    return weights


def _fit_weighted_vote(pool: Pool, budget: Budget, seed: int) -> Float64[np.ndarray, " models"]:
    """Weigh each vote by the logarithm of its odds of being right.

    Best for voters of independent errors, which ours are not; with one image of each outcome
    added, so that a voter without an error counts no more than it has shown.
    """
    weights = _fit_best(pool, budget, seed)
    best = np.flatnonzero(weights)
    right = pool.log_probabilities[best].argmax(axis=2) == pool.labels
    share = (right.sum(axis=1) + 1) / (pool.n_images + 2)
    # Below chance there is nothing to weigh; all such voters alike count a little.
    odds = np.maximum(np.log(share / (1 - share)) + np.log(pool.n_classes - 1), 1e-3)
    weights[best] = odds / odds.sum()
    return weights


def _fit_simplex(pool: Pool, budget: Budget, _seed: int) -> Float64[np.ndarray, " models"]:
    return select_simplex(pool.true_class(), max_members=budget.max_members, limits=budget.limits)


def _fit_greedy(pool: Pool, budget: Budget, _seed: int) -> Float64[np.ndarray, " models"]:
    return select_greedily(
        pool.true_class(), pool.costs, max_members=budget.max_members, limits=budget.limits
    )


def _fit_greedy_by_accuracy(
    pool: Pool, budget: Budget, _seed: int
) -> Float64[np.ndarray, " models"]:
    return select_by_accuracy(
        np.exp(pool.log_probabilities),
        pool.labels,
        pool.costs,
        max_members=budget.max_members,
        limits=budget.limits,
    )


def _fit_bagged(pool: Pool, budget: Budget, seed: int) -> Float64[np.ndarray, " models"]:
    return select_by_bagging(
        pool.true_class(),
        pool.costs,
        max_members=budget.max_members,
        limits=budget.limits,
        seed=seed,
    )


def _fit_llp(pool: Pool, budget: Budget, _seed: int) -> Float64[np.ndarray, " models"]:
    return fit_log_linear(pool, max_members=budget.max_members, limits=budget.limits)


def _fit_center_of_stack(pool: Pool, budget: Budget, _seed: int) -> Float64[np.ndarray, " models"]:
    return fit_log_linear(
        pool, max_members=budget.max_members, limits=budget.limits, both_ways=True
    )


_FITTERS: Mapping[Method, _Fitter] = {
    "single": _Fitter(fit=_fit_single, space="probability", scaled=True),
    "soup": _Fitter(fit=_fit_single, space="probability", scaled=True),
    "vote": _Fitter(fit=_fit_best, space="vote", scaled=False),
    "weighted_vote": _Fitter(fit=_fit_weighted_vote, space="vote", scaled=False),
    "soft": _Fitter(fit=_fit_best, space="probability", scaled=True),
    "logit": _Fitter(fit=_fit_best, space="logarithm", scaled=True),
    "weighted": _Fitter(fit=_fit_weighted, space="probability", scaled=True),
    "simplex": _Fitter(fit=_fit_simplex, space="probability", scaled=True),
    "greedy": _Fitter(fit=_fit_greedy, space="probability", scaled=True),
    "greedy_accuracy": _Fitter(fit=_fit_greedy_by_accuracy, space="probability", scaled=True),
    "bagged_greedy": _Fitter(fit=_fit_bagged, space="probability", scaled=True),
    "llp": _Fitter(fit=_fit_llp, space="logarithm", scaled=False),
    "stack": _Fitter(fit=_fit_center_of_stack, space="stack", scaled=False),
    "seeds": _Fitter(fit=_fit_best, space="logarithm", scaled=True),
}


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

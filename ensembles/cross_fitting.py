"""Predictions of an ensemble for the very images that it is fitted on, each by a fit without it.

What an ensemble predicts for its own fitting images flatters it, and a threshold of confidence
that is read off there promises too much.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64

from ensembles.budget import Limit
from ensembles.builder import MAX_MEMBERS, build, choose_method
from ensembles.errors import EnsembleError
from ensembles.methods import Method
from ensembles.pool import Pool, split_in_folds

N_FOLDS = 5


def cross_fitted_predictions(
    pool: Pool,
    *,
    method: Method | Literal["auto"] = "auto",
    max_members: int = MAX_MEMBERS,
    limits: Sequence[Limit] = (),
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> Float64[np.ndarray, "images classes"]:
    """Fit the ensemble without each fold of the images, and predict that fold.

    Members, weights and temperature are found anew each time, so the predictions are as honest
    as those for fresh images, of an ensemble fitted on a little less. With `method="auto"` the
    rule is asked once, of all images: the folds must not differ in method.

    Args:
        pool: The predictions that the ensemble itself is fitted on.
        method: As for `build`.
        max_members: As for `build`.
        limits: As for `build`.
        n_folds: How many parts; each holds its share of every class.
        seed: Of the folds, and as for `build`.

    Returns:
        Log-probabilities of all images of the pool, in their order.

    Raises:
        EnsembleError: There are fewer than 2 folds or fewer images than folds, or the method
            cannot be fitted without a fold.
    """
    if not 2 <= n_folds <= pool.n_images:
        raise EnsembleError(
            f"n_folds must lie between 2 and the number of images, {pool.n_images}, got {n_folds}."
        )
    chosen = choose_method(pool) if method == "auto" else method
    folds = split_in_folds(pool.labels, n_folds=n_folds, seed=seed)
    predictions = np.empty((pool.n_images, pool.n_classes))
    for fold in range(n_folds):
        kept, left_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        ensemble = build(
            pool.select_images(kept),
            method=chosen,
            max_members=max_members,
            limits=limits,
            seed=seed,
        )
        predictions[left_out] = ensemble.predict(pool.select_images(left_out))
    return predictions

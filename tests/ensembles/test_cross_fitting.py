from collections.abc import Callable

import numpy as np
import pytest

from ensembles.budget import Limit
from ensembles.builder import build
from ensembles.conformal import fit_conformal
from ensembles.cross_fitting import cross_fitted_predictions
from ensembles.errors import EnsembleError
from ensembles.metrics import log_loss
from ensembles.pool import Pool


def test_an_image_is_predicted_by_the_ensemble_of_the_others(
    random_pool: Callable[..., Pool],
) -> None:
    # With as many folds as images, each is left out alone.
    pool = random_pool(n_images=12)

    predictions = cross_fitted_predictions(pool, method="soft", max_members=2, n_folds=12)

    for row in (0, 5):
        others = pool.select_images(np.delete(np.arange(12), row))
        expected = build(others, method="soft", max_members=2).predict(
            pool.select_images(np.array([row]))
        )
        np.testing.assert_array_equal(predictions[row], expected[0])


def test_cross_fitting_does_not_flatter_as_the_fit_itself_does(
    random_pool: Callable[..., Pool],
) -> None:
    own, crossed, fresh = [], [], []

    for seed in range(20):
        pool = random_pool(n_models=20, n_images=2100, seed=seed)
        fit_pool = pool.select_images(np.arange(100))
        rest = pool.select_images(np.arange(100, 2100))
        ensemble = build(fit_pool, method="simplex")
        own.append(log_loss(ensemble.predict(fit_pool), fit_pool.labels))
        crossed.append(
            log_loss(cross_fitted_predictions(fit_pool, method="simplex"), fit_pool.labels)
        )
        fresh.append(log_loss(ensemble.predict(rest), rest.labels))

    gap = np.mean(fresh) - np.mean(own)
    assert gap > 0.01
    assert np.mean(crossed) > np.mean(own) + gap / 2


def test_sets_of_cross_fitted_predictions_cover_fresh_images(
    random_pool: Callable[..., Pool],
) -> None:
    crossed: list[float] = []
    flattered: list[float] = []

    for seed in range(20):
        pool = random_pool(n_models=20, n_images=1080, seed=seed)
        fit_pool = pool.select_images(np.arange(80))
        rest = pool.select_images(np.arange(80, 1080))
        ensemble = build(fit_pool, method="simplex")
        fresh = ensemble.predict(rest)
        images = np.arange(rest.n_images)
        for coverages, predictions in (
            (crossed, cross_fitted_predictions(fit_pool, method="simplex")),
            (flattered, ensemble.predict(fit_pool)),
        ):
            conformal = fit_conformal(predictions, fit_pool.labels, alpha=0.2)
            coverages.append(float(conformal.sets(fresh)[images, rest.labels].mean()))

    assert np.mean(crossed) > 0.8 - 2 * np.std(crossed) / np.sqrt(20)
    assert np.mean(flattered) < np.mean(crossed)


def test_limits_hold_in_each_fold(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_models=3, n_images=20)
    only_the_last = Limit(name="size", costs=(2.0, 2.0, 1.0), maximum=1.0)

    limited = cross_fitted_predictions(pool, method="greedy", limits=[only_the_last], n_folds=4)

    alone = cross_fitted_predictions(pool.select([2]), method="greedy", n_folds=4)
    np.testing.assert_allclose(limited, alone)


@pytest.mark.parametrize("n_folds", [1, 13])
def test_folds_that_cannot_be_are_refused(random_pool: Callable[..., Pool], n_folds: int) -> None:
    with pytest.raises(
        EnsembleError, match=f"between 2 and the number of images, 12, got {n_folds}"
    ):
        cross_fitted_predictions(random_pool(n_images=12), n_folds=n_folds)


def test_a_method_that_needs_all_images_is_refused(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_images=600)

    with pytest.raises(EnsembleError, match="needs at least 500 images to fit on, got 480"):
        cross_fitted_predictions(pool, method="stack")

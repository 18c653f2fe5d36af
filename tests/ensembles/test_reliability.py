import json

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.special import log_softmax
from scipy.stats import binom

from ensembles.calibration import fit_temperature
from ensembles.combination import Combination
from ensembles.comparison import find_wilson_interval
from ensembles.errors import EnsembleError
from ensembles.metrics import expected_calibration_error
from ensembles.reliability import Reliability, reliability, without_temperature


def draw(
    generator: np.random.Generator, n_images: int, sharpness: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels from distributions over 4 classes; report those, or sharper ones."""
    true = log_softmax(generator.normal(size=(n_images, 4)) * 2, axis=1)
    cumulated = np.exp(true).cumsum(axis=1)
    labels = (generator.random((n_images, 1)) > cumulated[:, :3]).sum(axis=1)
    return log_softmax(true * sharpness, axis=1), labels


def test_each_image_is_in_the_bin_of_its_confidence() -> None:
    confidences = np.array([0.55, 0.65, 0.75, 0.95, 0.85])
    logarithms = np.log(np.stack([confidences, 1 - confidences], axis=1))
    labels = np.array([0, 0, 1, 0, 1])

    measured = reliability(logarithms, labels, n_bins=5)

    # Bins (0.4, 0.6], (0.6, 0.8] and (0.8, 1]: gaps 0.45, 0.2 on average and 0.4 on average.
    assert [each.n_images for each in measured.bins] == [0, 0, 1, 2, 2]
    assert [each.accuracy for each in measured.bins] == [None, None, 1.0, 0.5, 0.5]
    assert measured.bins[3].confidence == pytest.approx(0.7)
    assert measured.bins[3].accuracy_interval == find_wilson_interval(1, 2)
    assert measured.bins[0].accuracy_interval is None
    assert (measured.bins[3].low, measured.bins[3].high) == pytest.approx((0.6, 0.8))
    assert measured.expected_calibration_error == pytest.approx((0.45 + 2 * 0.2 + 2 * 0.4) / 5)


def test_the_error_is_that_of_the_metric() -> None:
    drawn = draw(np.random.default_rng(0), 300, 2.0)

    measured = reliability(*drawn)

    assert measured.expected_calibration_error == pytest.approx(expected_calibration_error(*drawn))
    assert sum(each.n_images for each in measured.bins) == 300


@pytest.mark.parametrize(("sharpness", "least"), [(1.0, 0.95), (2.0, 0.95), (1.2, 0.85)])
def test_the_interval_holds_the_error_of_very_many_images(sharpness: float, least: float) -> None:
    generator = np.random.default_rng(1)
    truth = expected_calibration_error(*draw(generator, 500_000, sharpness))
    n_runs = 100

    intervals = [
        reliability(*draw(generator, 400, sharpness), n_resamples=100).interval
        for _ in range(n_runs)
    ]

    held = sum(interval.low <= truth <= interval.high for interval in intervals)
    assert held >= binom.ppf(1e-3, n_runs, least)


def test_a_calibrated_model_is_seldom_called_off_and_a_sharp_one_always() -> None:
    generator = np.random.default_rng(2)

    calibrated = [reliability(*draw(generator, 300), n_resamples=200) for _ in range(100)]
    sharp = reliability(*draw(generator, 300, 3.0))

    n_called = sum(each.is_visibly_off for each in calibrated)
    assert n_called <= binom.ppf(1 - 1e-3, 100, 0.025)
    assert np.mean([each.expected_calibration_error for each in calibrated]) > 0.03
    assert sharp.is_visibly_off
    assert sharp.interval.low > sharp.by_chance.high / 2


def test_the_temperature_repairs_what_the_diagram_shows() -> None:
    generator = np.random.default_rng(3)
    logarithms, labels = draw(generator, 4000, 2.5)
    temperature = fit_temperature(logarithms[:2000], labels[:2000])

    before = reliability(logarithms[2000:], labels[2000:])
    after = reliability(log_softmax(logarithms[2000:] / temperature, axis=1), labels[2000:])

    assert before.is_visibly_off
    assert not after.is_visibly_off
    assert after.expected_calibration_error < before.expected_calibration_error / 4


def test_the_combination_without_temperature_has_equal_shares_of_the_same_members() -> None:
    pooled = Combination(method="soft", space="probability", weights=(0.25, 0.75), temperature=1.6)
    sharp = Combination(method="llp", space="logarithm", weights=(0.6, 1.8))
    members = np.log(np.random.default_rng(4).dirichlet(np.ones(3), size=(2, 5)))

    assert without_temperature(pooled).temperature == 1
    assert without_temperature(pooled).weights == (0.25, 0.75)
    assert without_temperature(sharp).weights == pytest.approx((0.25, 0.75))
    np.testing.assert_allclose(
        without_temperature(sharp).combine(members),
        log_softmax(0.25 * members[0] + 0.75 * members[1], axis=1),
        atol=1e-6,
    )


def test_stacking_has_no_temperature_to_take_away() -> None:
    stacked = Combination(
        method="stack",
        space="stack",
        weights=(1.0,),
        class_weights=((1.0, 2.0),),
        class_biases=(0.0, 0.1),
    )

    assert without_temperature(stacked) == stacked


def test_the_figures_survive_json() -> None:
    measured = reliability(*draw(np.random.default_rng(5), 50), n_resamples=20)

    text = json.dumps(measured.to_json())

    assert TypeAdapter(Reliability).validate_json(text, strict=True) == measured


def test_no_image_or_no_bin_is_refused() -> None:
    logarithms, labels = draw(np.random.default_rng(6), 5)
    with pytest.raises(EnsembleError, match="got 0 images and 15 bins"):
        reliability(logarithms[:0], labels[:0])
    with pytest.raises(EnsembleError, match="got 5 images and 0 bins"):
        reliability(logarithms, labels, n_bins=0)

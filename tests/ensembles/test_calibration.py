import numpy as np
import pytest
from scipy.special import log_softmax

from ensembles.calibration import fit_temperature


def draw(n_images: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels from distributions, and report those distributions too sharp or too flat."""
    generator = np.random.default_rng(0)
    true = log_softmax(generator.normal(size=(n_images, 5)) * 2, axis=1)
    labels = np.array([generator.choice(5, p=np.exp(row)) for row in true])
    return log_softmax(true * sharpness, axis=1), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_a_known_temperature_is_recovered(sharpness: float) -> None:
    temperature = fit_temperature(*draw(8000, sharpness))

    assert temperature == pytest.approx(sharpness, rel=0.05)


def test_few_images_move_the_temperature_less_than_many() -> None:
    few = fit_temperature(*draw(20, 3.0))
    without_prior = fit_temperature(*draw(20, 3.0), prior_sigma=100.0)

    assert 1 < few < without_prior


def test_one_sure_and_right_image_does_not_make_the_ensemble_sure_of_all() -> None:
    certain = np.log(np.array([[0.9, 0.1]]))

    temperature = fit_temperature(certain, np.array([0]))

    assert 0.9 < temperature < 1

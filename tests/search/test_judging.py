import numpy as np
import pytest

from search.judging import measure_flattery, score


def predict(n_images: int, *, seed: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions of one network, as sure as asked, and the true classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=n_images)
    logits = generator.normal(size=(n_images, 3))
    logits[np.arange(n_images), labels] += 1.5
    logits *= sharpness
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), labels


def test_the_score_that_may_flatter_is_the_one_that_the_search_saw() -> None:
    stop, ens = (predict(200, seed=seed, sharpness=0.3) for seed in (1, 2))

    measured = measure_flattery(stop, ens)

    assert measured.stop_log_loss == pytest.approx(score(*stop)["log_loss"])
    assert measured.stop_accuracy == score(*stop)["accuracy"]


def test_a_network_that_is_as_good_as_it_looked_is_not_flattered_by_its_temperature() -> None:
    unsure = [predict(2000, seed=seed, sharpness=0.3) for seed in (1, 2)]
    sure = [(3 * predicted, labels) for predicted, labels in unsure]

    measured = [measure_flattery(*pair) for pair in (unsure, sure)]

    assert measured[0].verdict == "not distinguishable"
    assert measured[1].log_loss_optimism == pytest.approx(measured[0].log_loss_optimism, abs=0.002)

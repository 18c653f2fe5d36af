import json
import re

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.special import log_softmax
from scipy.stats import binom

from ensembles.errors import EnsembleError
from ensembles.overtuning import Overtuning, measure_overtuning


def certain(true: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Give each image of class 0 this probability of it; two classes."""
    right = np.array(true)
    return np.log(np.stack([right, 1 - right], axis=1)), np.zeros(len(right), dtype=np.int64)


def draw(generator: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    labels = generator.integers(4, size=n_images)
    logits = generator.normal(size=(n_images, 4)) * 2
    logits[np.arange(n_images), labels] += 3
    return log_softmax(logits, axis=1), labels


def test_the_figures_are_worked_out_by_hand() -> None:
    measured = measure_overtuning(
        stop=certain([np.exp(-0.1), np.exp(-0.3)]),
        ens=certain([np.exp(-0.2), np.exp(-0.6), np.exp(-1.0), np.exp(-0.6)]),
    )

    assert measured.stop_log_loss == pytest.approx(0.2)
    assert measured.ens_log_loss == pytest.approx(0.6)
    assert measured.log_loss_optimism == pytest.approx(0.4)
    # Variances of the means: 0.02 / 2 and (0.32 / 3) / 4.
    half = 1.959964 * np.sqrt(0.01 + 0.08 / 3)
    assert measured.log_loss_interval.high == pytest.approx(0.4 + half)
    assert measured.log_loss_interval.low == pytest.approx(0.4 - half)
    assert (measured.stop_accuracy, measured.ens_accuracy) == (1.0, 0.75)
    assert measured.accuracy_optimism == 0.25
    assert (measured.n_stop, measured.n_ens) == (2, 4)
    assert measured.verdict == "flattered"


def test_the_mean_loss_of_one_model_on_two_sets_differs_visibly_in_few_cases() -> None:
    # Nobody chose anything: each of both intervals may exclude 0 in 5 % of all cases.
    generator = np.random.default_rng(0)
    n_runs = 400

    measured = [
        measure_overtuning(stop=draw(generator, 300), ens=draw(generator, 500))
        for _ in range(n_runs)
    ]

    limit = binom.ppf(1 - 1e-4, n_runs, 0.05)
    assert sum(each.verdict == "flattered" for each in measured) <= limit
    assert sum(each.log_loss_interval.excludes_zero for each in measured) <= limit
    assert sum(each.accuracy_interval.excludes_zero for each in measured) <= limit


def test_the_luckiest_of_many_equal_trials_is_flattered_on_average() -> None:
    generator = np.random.default_rng(1)
    optimism = []
    for _ in range(30):
        trials = [draw(generator, 200) for _ in range(50)]
        losses = [-each[np.arange(200), labels].mean() for each, labels in trials]
        best = trials[int(np.argmin(losses))]
        optimism.append(measure_overtuning(stop=best, ens=draw(generator, 200)).log_loss_optimism)

    error = np.std(optimism) / np.sqrt(30)

    assert np.mean(optimism) > 4 * error


@pytest.mark.parametrize(
    ("stop", "ens", "verdict", "words"),
    [
        (0.9, 0.6, "flattered", "flatters the best trial: log-loss 0.106 on 51 stop images"),
        (0.6, 0.9, "not flattered", r"does not flatter .* \(difference -0\.405 nats"),
        (0.8, 0.8, "not distinguishable", r"not visibly too good.*\(\+0\.0 points"),
    ],
)
def test_the_sentence_says_what_was_found(
    stop: float, ens: float, verdict: str, words: str
) -> None:
    varied = [0.95, 1.0, 1.05]

    measured = measure_overtuning(
        stop=certain([stop * each for each in varied * 17]),
        ens=certain([ens * each for each in varied * 14]),
    )

    assert measured.verdict == verdict
    assert re.search(words, measured.sentence())


def test_the_figures_survive_json() -> None:
    measured = measure_overtuning(stop=certain([0.9, 0.8]), ens=certain([0.7, 0.6]))

    text = json.dumps(measured.to_json())

    assert TypeAdapter(Overtuning).validate_json(text, strict=True) == measured


def test_a_single_image_is_refused() -> None:
    with pytest.raises(EnsembleError, match="at least 2 images of each, got 1 and 2"):
        measure_overtuning(stop=certain([0.9]), ens=certain([0.7, 0.6]))

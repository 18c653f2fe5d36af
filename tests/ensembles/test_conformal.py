import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import binom

from ensembles.conformal import RISK, Conformal, Rejection, fit_conformal, fit_rejection
from ensembles.errors import EnsembleError


def draw(
    generator: np.random.Generator, n_images: int, *, sharpness: float = 1.0, skill: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels from distributions over 4 classes; report those, or sharper ones."""
    true = log_softmax(generator.normal(size=(n_images, 4)) * skill, axis=1)
    cumulated = np.exp(true).cumsum(axis=1)
    labels = (generator.random((n_images, 1)) > cumulated[:, :3]).sum(axis=1)
    return log_softmax(true * sharpness, axis=1), labels


def coverage(conformal: Conformal, log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(conformal.sets(log_probabilities)[np.arange(len(labels)), labels].mean())


def test_the_threshold_is_worked_out_by_hand() -> None:
    # Of 4 images at alpha 0.4, the 5 * 0.6 = 3rd highest probability of the true class: 0.5.
    true = np.array([0.9, 0.2, 0.5, 0.7])
    logarithms = np.log(np.stack([true, 1 - true], axis=1))

    conformal = fit_conformal(logarithms, np.zeros(4, dtype=np.int64), alpha=0.4)

    assert conformal.threshold == pytest.approx(0.5)
    assert (conformal.alpha, conformal.n_images) == (0.4, 4)
    assert conformal.sets(logarithms).tolist() == [
        [True, False],
        [False, True],
        [True, True],
        [True, False],
    ]


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("alpha", "n_images"), [(0.1, 9), (0.1, 200), (0.05, 19), (0.3, 60)])
def test_a_fresh_image_is_covered_as_often_as_promised(
    sharpness: float, alpha: float, n_images: int
) -> None:
    generator = np.random.default_rng(1)
    n_runs = 600
    hits = 0

    for _ in range(n_runs):
        logarithms, labels = draw(generator, n_images + 1, sharpness=sharpness)
        conformal = fit_conformal(logarithms[:-1], labels[:-1], alpha=alpha)
        hits += int(coverage(conformal, logarithms[-1:], labels[-1:]))

    # 1 of 10,000 runs of an honest method would fall below.
    assert hits >= binom.ppf(1e-4, n_runs, 1 - alpha)


def test_coverage_is_not_far_above_what_was_promised() -> None:
    # With accuracy far below 1 - alpha no set is empty anyway, and the law of the plain method
    # bounds the mean coverage from above as well, by 1 - alpha + 1 / (n + 1).
    generator = np.random.default_rng(2)
    coverages = []

    for _ in range(200):
        fit = fit_conformal(*draw(generator, 99), alpha=0.1)
        coverages.append(coverage(fit, *draw(generator, 500)))

    assert np.mean(coverages) == pytest.approx(0.905, abs=0.01)


@given(st.integers(0, 10_000), st.floats(0.05, 0.9))
def test_no_set_is_empty_and_none_loses_a_class_of_the_plain_method(
    seed: int, alpha: float
) -> None:
    logarithms, labels = draw(np.random.default_rng(seed), 40, skill=4.0)
    conformal = fit_conformal(logarithms, labels, alpha=alpha)

    sets = conformal.sets(logarithms)

    plain = np.exp(logarithms) >= conformal.threshold
    assert sets.any(axis=1).all()
    assert (sets | plain == sets).all()
    assert (sets.sum(axis=1) == np.maximum(plain.sum(axis=1), 1)).all()


@given(st.integers(0, 10_000))
def test_the_fitting_images_themselves_are_covered_by_the_exact_rank(seed: int) -> None:
    logarithms, labels = draw(np.random.default_rng(seed), 29)
    conformal = fit_conformal(logarithms, labels, alpha=0.1)

    plain = np.exp(logarithms)[np.arange(29), labels] >= conformal.threshold

    assert plain.sum() == math.ceil(30 * 0.9)


@pytest.mark.parametrize(("alpha", "n_needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.03, 33)])
def test_one_image_too_few_for_alpha_is_refused(alpha: float, n_needed: int) -> None:
    logarithms, labels = draw(np.random.default_rng(0), n_needed)

    fit_conformal(logarithms, labels, alpha=alpha)

    with pytest.raises(EnsembleError, match=f"at least {n_needed} images, got {n_needed - 1}"):
        fit_conformal(logarithms[:-1], labels[:-1], alpha=alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan")])
def test_an_alpha_that_is_no_share_is_refused(alpha: float) -> None:
    with pytest.raises(EnsembleError, match="alpha must lie between 0 and 1"):
        fit_conformal(*draw(np.random.default_rng(0), 30), alpha=alpha)


def test_records_that_no_fit_returns_are_refused() -> None:
    with pytest.raises(EnsembleError, match="at least 19 images, got 5"):
        Conformal(alpha=0.05, threshold=0.5, n_images=5)
    with pytest.raises(EnsembleError, match="threshold must be a probability"):
        Conformal(alpha=0.5, threshold=float("nan"), n_images=5)
    with pytest.raises(EnsembleError, match="threshold must be a probability"):
        Rejection(threshold=1.5, target_accuracy=0.9, coverage=0.5, n_images=10)
    with pytest.raises(EnsembleError, match="coverage above 0"):
        Rejection(threshold=0.5, target_accuracy=0.9, coverage=0.0, n_images=10)
    with pytest.raises(EnsembleError, match="target_accuracy must lie"):
        Rejection(threshold=0.5, target_accuracy=1.0, coverage=0.5, n_images=10)


def test_a_promise_of_accuracy_is_broken_by_at_most_one_fit_in_twenty() -> None:
    # Confidences are uniform from 0.5 to 1 and true, so answers above t are right in (1 + t) / 2
    # of all cases.
    generator = np.random.default_rng(3)
    n_runs, target = 400, 0.9
    kept = broken = broken_by_the_observed = 0

    for _ in range(n_runs):
        confidences = (1 + generator.random(2000)) / 2
        labels = (generator.random(2000) > confidences).astype(np.int64)
        logarithms = np.log(np.stack([confidences, 1 - confidences], axis=1))
        try:
            rejection = fit_rejection(logarithms, labels, target_accuracy=target)
        except EnsembleError:
            pass  # nothing is promised
        else:
            broken += (1 + rejection.threshold) / 2 < target
            kept += (1 + rejection.threshold) / 2 >= target
        falling = np.argsort(-confidences)
        observed = 1 - np.cumsum(labels[falling]) / np.arange(1, 2001)
        lowest = confidences[falling][np.flatnonzero(observed >= target).max()]
        broken_by_the_observed += (1 + lowest) / 2 < target

    assert broken <= binom.ppf(1 - 1e-4, n_runs, RISK)
    assert kept > 0.8 * n_runs
    assert broken_by_the_observed > 0.4 * n_runs


def test_a_low_target_is_met_by_answering_everything() -> None:
    logarithms, labels = draw(np.random.default_rng(4), 1000)

    rejection = fit_rejection(logarithms, labels, target_accuracy=0.5)

    assert rejection == Rejection(threshold=0.0, target_accuracy=0.5, coverage=1.0, n_images=1000)
    assert rejection.answers(logarithms).all()


def test_the_coverage_is_the_share_that_is_answered() -> None:
    logarithms, labels = draw(np.random.default_rng(5), 2000)

    rejection = fit_rejection(logarithms, labels, target_accuracy=0.9)

    answered = rejection.answers(logarithms)
    assert answered.mean() == pytest.approx(rejection.coverage)
    assert 0.2 < rejection.coverage < 0.6
    assert (logarithms.argmax(axis=1) == labels)[answered].mean() > 0.9


@given(st.integers(0, 10_000))
def test_a_higher_target_answers_no_more(seed: int) -> None:
    logarithms, labels = draw(np.random.default_rng(seed), 600, skill=4.0)

    coverages = [
        fit_rejection(logarithms, labels, target_accuracy=target).coverage
        for target in (0.6, 0.7, 0.8)
    ]

    assert coverages == sorted(coverages, reverse=True)


def test_equally_sure_images_are_answered_together_or_not_at_all() -> None:
    # 300 images at 0.9, all right, then 300 at 0.6, all wrong.
    confidences = np.repeat([0.9, 0.6], 300)
    logarithms = np.log(np.stack([confidences, 1 - confidences], axis=1))
    labels = np.repeat([0, 1], 300)

    rejection = fit_rejection(logarithms, labels, target_accuracy=0.95)

    assert rejection.threshold == pytest.approx(0.9)
    assert rejection.coverage == 0.5


def test_a_target_that_so_few_images_cannot_show_is_refused_with_what_they_can() -> None:
    # 50 images, all right: the exact bound at risk 0.05 / 5 is 0.01 ** (1 / 50) = 0.912.
    logarithms = np.log(np.tile([0.99, 0.01], (50, 1)))

    with pytest.raises(EnsembleError, match=r"0\.95 on 50 images; the highest .* 0\.912\."):
        fit_rejection(logarithms, np.zeros(50, dtype=np.int64), target_accuracy=0.95)


def test_the_highest_target_of_the_message_is_reached() -> None:
    logarithms, labels = draw(np.random.default_rng(6), 400)
    with pytest.raises(EnsembleError) as refusal:
        fit_rejection(logarithms, labels, target_accuracy=0.99)
    highest = float(str(refusal.value).rsplit(maxsplit=1)[-1].rstrip("."))

    fit_rejection(logarithms, labels, target_accuracy=highest - 1e-3)

    with pytest.raises(EnsembleError, match="no threshold"):
        fit_rejection(logarithms, labels, target_accuracy=highest + 1e-3)


def test_a_target_that_nothing_reaches_is_refused() -> None:
    logarithms = np.log(np.tile([0.99, 0.01], (50, 1)))

    with pytest.raises(EnsembleError, match=r"highest that is shown is 0\."):
        fit_rejection(logarithms, np.ones(50, dtype=np.int64), target_accuracy=0.5)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_a_target_that_is_no_share_is_refused(target: float) -> None:
    with pytest.raises(EnsembleError, match="target_accuracy must lie between 0 and 1"):
        fit_rejection(*draw(np.random.default_rng(0), 30), target_accuracy=target)


def test_no_image_at_all_is_refused() -> None:
    with pytest.raises(EnsembleError, match="at least one image"):
        fit_rejection(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), target_accuracy=0.5)

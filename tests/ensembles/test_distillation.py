import json

import numpy as np
import pytest

from ensembles.comparison import Interval
from ensembles.distillation import (
    DistillationReport,
    Predicted,
    RetainedGain,
    measure_retained,
    report_distillation,
)
from ensembles.errors import EnsembleError


def predicted(name: str, right: np.ndarray, *, sure: float = 0.9, cost: float = 1.0) -> Predicted:
    """Return two-class predictions for label 0: right or wrong, with this confidence."""
    of_true = np.where(right, sure, 1 - sure)
    return Predicted(
        name=name,
        log_probabilities=np.log(np.stack([of_true, 1 - of_true], axis=1)),
        n_members=5 if name == "llp" else 1,
        cost=cost,
    )


def report(student: int, ensemble: int, single: int, n_images: int = 1000) -> DistillationReport:
    """Let each be right on the first so many images."""
    places = np.arange(n_images)
    return report_distillation(
        predicted("student", places < student, cost=0.2),
        predicted("llp", places < ensemble, cost=1.0),
        predicted("single", places < single, cost=0.2),
        np.zeros(n_images, dtype=np.int64),
        n_test_openings=3,
    )


def test_a_student_half_way_up_keeps_half_of_the_gain() -> None:
    found = report(student=850, ensemble=900, single=800)

    # In log-loss, each image that is right instead of wrong is worth log 9 to both.
    assert found.retained_accuracy is not None
    assert found.retained_log_loss is not None
    assert found.retained_accuracy.share == pytest.approx(0.5)
    assert found.retained_log_loss.share == pytest.approx(0.5)
    assert found.student.test.accuracy == pytest.approx(0.85)
    assert found.comparison.only_ensemble_right == 50
    assert found.gain.only_ensemble_right == 100
    assert [found.student.cost, found.ensemble.cost] == pytest.approx([1.0, 5.0])
    assert found.retained.startswith("The student keeps 50 % (95 % interval 4")
    assert found.verdict.startswith(
        "The student is better than the best single trial by 5.00 points of accuracy"
    )


def test_the_interval_of_a_retained_share_is_that_of_a_binomial() -> None:
    found = report(student=850, ensemble=900, single=800).retained_accuracy

    # Of 100 images that the ensemble gains, the student gains 50: a share of so many drawn ones.
    assert found is not None
    half = 1.96 * np.sqrt(0.25 / 100)
    assert found.interval.low == pytest.approx(0.5 - half, abs=0.015)
    assert found.interval.high == pytest.approx(0.5 + half, abs=0.015)


def test_a_student_that_is_the_ensemble_keeps_all_of_it() -> None:
    found = report(student=900, ensemble=900, single=800)

    expected = RetainedGain(share=1.0, interval=Interval(low=1.0, high=1.0))
    assert found.retained_accuracy == expected
    assert found.retained_log_loss == expected


def test_a_student_that_is_the_single_model_keeps_nothing() -> None:
    found = report(student=800, ensemble=900, single=800)

    assert found.retained_accuracy == RetainedGain(share=0.0, interval=Interval(low=0, high=0))
    assert found.verdict.startswith("The student is not distinguishable from the best single")
    assert found.verdict.endswith("exporting the single model is as good.")


def test_a_student_worse_than_the_single_model_loses() -> None:
    found = report(student=750, ensemble=900, single=800)

    assert found.retained_accuracy is not None
    assert found.retained_accuracy.share == pytest.approx(-0.5)
    assert found.verdict.endswith("Export the single model.")


@pytest.mark.parametrize("ensemble", [803, 800, 700])
def test_where_the_ensemble_has_no_gain_nobody_keeps_a_share(ensemble: int) -> None:
    found = report(student=850, ensemble=ensemble, single=800)

    assert found.retained_accuracy is None
    assert found.retained_log_loss is None
    assert found.retained == (
        "The ensemble itself is not established to be better than the best single trial on 1,000 "
        "test images: there is no gain of which the student could keep a share."
    )


def test_a_gain_in_log_loss_alone_is_told_alone() -> None:
    right = np.arange(1000) < 800
    labels = np.zeros(1000, dtype=np.int64)

    found = report_distillation(
        predicted("student", right, sure=0.8),
        predicted("llp", right, sure=0.75),
        predicted("single", right, sure=0.95),
        labels,
    )

    # -0.8 log p - 0.2 log (1 - p), by hand.
    losses = [-0.8 * np.log(sure) - 0.2 * np.log(1 - sure) for sure in (0.8, 0.75, 0.95)]
    assert found.retained_accuracy is None
    assert found.retained_log_loss is not None
    assert found.retained_log_loss.share == pytest.approx(
        (losses[2] - losses[0]) / (losses[2] - losses[1])
    )
    assert "so there is no share of that to keep; of its gain in log-loss" in found.retained


def test_resamples_are_paired_and_within_classes() -> None:
    # The student has exactly half of what the ensemble has on every image, however it varies.
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=300)
    gains = generator.normal(1.0, 5.0, size=300)

    found = measure_retained(0.5 * gains, gains, labels)

    assert found is not None
    assert found.share == pytest.approx(0.5)
    assert [found.interval.low, found.interval.high] == pytest.approx([0.5, 0.5])


def test_a_gain_that_resamples_often_lose_has_no_share() -> None:
    generator = np.random.default_rng(0)
    gains = generator.normal(0.05, 1.0, size=200)

    assert measure_retained(gains, gains, np.zeros(200, dtype=np.int64)) is None


def test_a_report_is_read_back_from_json() -> None:
    found = report(student=850, ensemble=900, single=800)

    assert DistillationReport.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(EnsembleError, match="this is no report of a distillation"):
        DistillationReport.from_json({"student": 1})

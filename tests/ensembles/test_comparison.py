from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from ensembles.comparison import (
    Comparison,
    Interval,
    compare,
    find_independent_interval,
    find_paired_interval,
    find_smallest_visible,
    find_wilson_interval,
    mcnemar,
)
from ensembles.decision import Decision
from ensembles.errors import EnsembleError


def predict(right: np.ndarray, sure: float = 0.9) -> np.ndarray:
    """Return two-class predictions for label 0: right or wrong, with this confidence."""
    of_true = np.where(right, sure, 1 - sure)
    logarithms: np.ndarray = np.log(np.stack([of_true, 1 - of_true], axis=1))
    return logarithms


def compare_counts(both: int, only_ensemble: int, only_single: int, neither: int) -> Comparison:
    counts = [both, only_ensemble, only_single, neither]
    ensemble_right = np.repeat([True, True, False, False], counts)
    single_right = np.repeat([True, False, True, False], counts)
    labels = np.zeros(sum(counts), dtype=np.int64)
    return compare(predict(ensemble_right), predict(single_right), labels)


def test_mcnemar_counts_coin_tosses() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(12, 9) == pytest.approx(2 * binom.cdf(9, 21, 0.5))
    assert mcnemar(9, 12) == pytest.approx(binomtest(9, 21).pvalue)


def test_six_images_on_one_side_decide_and_five_do_not() -> None:
    assert compare_counts(170, 6, 0, 4).verdict == "better"
    assert compare_counts(170, 5, 0, 5).verdict == "not distinguishable"
    assert compare_counts(170, 0, 6, 4).verdict == "worse"


def test_the_differences_are_paired_counts() -> None:
    comparison = compare_counts(80, 12, 2, 6)

    assert comparison.only_ensemble_right == 12
    assert comparison.only_single_right == 2
    assert comparison.accuracy == pytest.approx(0.92)
    assert comparison.single_accuracy == pytest.approx(0.82)
    assert comparison.accuracy_difference == pytest.approx(0.10)
    assert comparison.log_loss_difference == pytest.approx(-0.10 * np.log(9))


def test_the_interval_of_the_difference_is_near_the_normal_one() -> None:
    comparison = compare_counts(8000, 900, 600, 500)

    error = np.sqrt(1500 / 10_000 - 0.03**2) / 100
    interval = comparison.accuracy_interval
    assert interval.low == pytest.approx(0.03 - 1.96 * error, abs=5e-4)
    assert interval.high == pytest.approx(0.03 + 1.96 * error, abs=5e-4)
    # each discordant image moves the log-loss by log 9 and nothing else does
    scaled = comparison.log_loss_interval
    assert scaled.low == pytest.approx(-interval.high * np.log(9), abs=2e-3)
    assert scaled.high == pytest.approx(-interval.low * np.log(9), abs=2e-3)


def test_the_bootstrap_keeps_the_images_of_each_class() -> None:
    # All images of class 0 are gained, none of class 1: resampling within classes moves nothing.
    labels = np.repeat([0, 1], [30, 70])
    first = np.log(np.where(labels[:, None] == [0, 1], 0.9, 0.1))
    second = np.tile(np.log([0.1, 0.9]), (100, 1))

    comparison = compare(first, second, labels)

    assert comparison.log_loss_interval.low == pytest.approx(-0.3 * np.log(9))


def test_paired_intervals_worked_out_by_hand() -> None:
    interval = find_paired_interval(3, 2, 180)

    # 4/182 - 3/182 -+ 1.96 sqrt((7/182 - (1/182)^2) / 182)
    assert interval.low == pytest.approx(-0.02298, abs=1e-5)
    assert interval.high == pytest.approx(0.03397, abs=1e-5)


def test_a_paired_interval_has_width_where_nothing_differs() -> None:
    interval = find_paired_interval(0, 0, 179)

    assert interval.low == -interval.high
    assert interval.high == pytest.approx(1.96 * (2 / 181 / 181) ** 0.5, abs=1e-4)


def test_the_same_seed_gives_the_same_intervals() -> None:
    assert compare_counts(50, 20, 10, 20) == compare_counts(50, 20, 10, 20)


def test_wilson_intervals_worked_out_by_hand() -> None:
    interval = find_wilson_interval(8, 10)

    # (0.8 + 0.19207 -+ 1.96 sqrt(0.016 + 0.0096036)) / 1.384146
    assert interval.low == pytest.approx(0.4902, abs=1e-4)
    assert interval.high == pytest.approx(0.9433, abs=1e-4)
    assert find_wilson_interval(10, 10).high == pytest.approx(1)
    assert find_wilson_interval(0, 10).low == 0


def test_the_smallest_visible_difference_follows_the_disagreement() -> None:
    assert find_smallest_visible(138, 4600) == pytest.approx(0.005, abs=1e-5)
    assert find_smallest_visible(0, 180) == pytest.approx(6 / 180)


def test_the_sentence_of_a_better_ensemble() -> None:
    comparison = compare_counts(8000, 900, 600, 500)

    sentence = comparison.sentence(method="llp", n_members=5, cost_ratio=5.0)

    assert sentence.startswith(
        "The ensemble (llp, 5 members) is better than the best single trial by 3.00 points of "
        "accuracy (95 % interval 2.2 to 3.8, McNemar p = 9.5e-15, "
    )
    assert sentence.endswith("10,000 test images).")


def test_the_sentence_of_a_worse_ensemble() -> None:
    comparison = compare_counts(8000, 600, 900, 500)

    sentence = comparison.sentence(method="vote", n_members=3, cost_ratio=3.0)

    assert "is worse than the best single trial by 3.00 points" in sentence
    assert "interval 2.2 to 3.8" in sentence
    assert sentence.endswith("Export the single model.")


def test_the_sentence_of_an_undecided_comparison() -> None:
    comparison = compare_counts(170, 3, 2, 5)

    sentence = comparison.sentence(method="bagged_greedy", n_members=4, cost_ratio=4.0)

    assert sentence == (
        "The ensemble (bagged_greedy, 4 members) is not distinguishable from the best single "
        "trial on 180 test images (difference +0.56 points, 95 % interval -2.3 to +3.4, "
        "p = 1.00; a difference below about 3.3 points could not be seen): exporting the single "
        "model is as good and 4.0 times cheaper."
    )


def test_a_clear_gain_in_log_loss_is_told_though_accuracy_is_undecided() -> None:
    right = np.repeat([True, False], [900, 100])
    labels = np.zeros(1000, dtype=np.int64)
    comparison = compare(predict(right, 0.8), predict(right, 0.99), labels)

    sentence = comparison.sentence(method="soft", n_members=2, cost_ratio=1.0)

    assert comparison.verdict == "not distinguishable"
    assert "exporting the single model is as accurate. Its log-loss is clearly lower" in sentence


def test_a_log_loss_that_contradicts_accuracy_is_told() -> None:
    comparison = replace(
        compare_counts(70, 20, 1, 9),
        log_loss_difference=0.1,
        log_loss_interval=Interval(low=0.05, high=0.15),
    )

    sentence = comparison.sentence(method="soft", n_members=2, cost_ratio=2.0)

    assert "is better than" in sentence
    assert sentence.endswith("higher, by 0.100 nats (95 % interval 0.050 to 0.150).")


def test_the_single_model_is_not_compared_with_itself() -> None:
    comparison = compare_counts(90, 0, 0, 10)

    sentence = comparison.sentence(method="single", n_members=1, cost_ratio=1.0)

    assert comparison.verdict == "not distinguishable"
    assert sentence.startswith("The best single trial is the choice itself")
    assert "accuracy 90.00 % on 100 test images" in sentence


def test_an_underflowing_p_value_is_a_bound() -> None:
    comparison = compare_counts(0, 3000, 0, 0)

    assert "McNemar p < 1e-300" in comparison.sentence(method="llp", n_members=2, cost_ratio=2)


def test_a_comparison_without_images_is_refused() -> None:
    none = np.zeros((0, 2))

    with pytest.raises(EnsembleError, match="at least one test image"):
        compare(none, none, np.zeros(0, dtype=np.int64))


def test_the_interval_of_two_unrelated_shares_is_that_of_the_source() -> None:
    # Newcombe 1998, table II, (a): 56 of 70 and 48 of 80, method 10.
    interval = find_independent_interval(56, 70, 48, 80)

    assert interval.low == pytest.approx(0.0524, abs=5e-5)
    assert interval.high == pytest.approx(0.3339, abs=5e-5)


def test_exchanging_two_unrelated_shares_mirrors_their_interval() -> None:
    interval = find_independent_interval(10, 10, 3, 20)
    mirrored = find_independent_interval(3, 20, 10, 10)

    assert (interval.low, interval.high) == pytest.approx((-mirrored.high, -mirrored.low))
    assert interval.high <= 1


def skewed(right: list[bool], labels: list[int]) -> np.ndarray:
    """Return log-probabilities that are right, surely, for the images that are said to be."""
    given = np.where(right, labels, 1 - np.array(labels))
    return np.log(np.where(np.eye(2)[given] > 0, 0.9, 0.1))


def test_balanced_accuracy_decides_where_it_is_named() -> None:
    # 300 common images, of which the ensemble gets 30 fewer; 60 rare ones, all gained.
    labels = [0] * 300 + [1] * 60
    ensemble = skewed([True] * 270 + [False] * 30 + [True] * 60, labels)
    single = skewed([True] * 300 + [False] * 60, labels)

    by_accuracy = compare(ensemble, single, np.array(labels))
    by_name = compare(ensemble, single, np.array(labels), metric="balanced_accuracy")

    assert by_accuracy.accuracy_difference == pytest.approx(30 / 360)
    assert by_accuracy.named is None
    assert by_name.named is not None
    assert by_name.named.ensemble == pytest.approx((270 / 300 + 1) / 2)
    assert by_name.named.single == pytest.approx(0.5)
    assert by_name.named.gain == pytest.approx(0.45)
    assert by_name.named.gain_interval.low < 0.45 < by_name.named.gain_interval.high
    assert by_name.verdict == "better"
    assert "better than the best single trial by 45.00 points of balanced accuracy" in (
        by_name.sentence(method="llp", n_members=5, cost_ratio=5.0)
    )


def test_no_difference_in_the_named_metric_is_said_plainly() -> None:
    labels = [0, 1] * 50
    same = skewed([True] * 90 + [False] * 10, labels)

    comparison = compare(same, same, np.array(labels), metric="macro_f1")

    sentence = comparison.sentence(method="llp", n_members=3, cost_ratio=3.0)
    assert comparison.verdict == "not distinguishable"
    assert "not distinguishable from the best single trial in macro F1 on 100 test" in sentence
    assert "the single model is as good and 3.0 times cheaper" in sentence


def test_both_are_judged_by_the_labels_that_are_decided() -> None:
    # The rare class, a tenth of all images, is given 30 %: three times its share.
    log_probabilities = np.log([[0.7, 0.3]] * 4)
    decision = Decision(rule="prior_corrected", priors=(0.9, 0.1))
    labels = np.array([0, 1, 1, 1])

    plain = compare(log_probabilities, log_probabilities, labels)
    decided = compare(log_probabilities, log_probabilities, labels, decision=decision)

    assert plain.accuracy == 0.25
    assert decided.accuracy == 0.75


def test_the_figures_of_a_comparison_are_flat() -> None:
    labels = [0, 1] * 20
    same = skewed([True] * 40, labels)

    figures = compare(same, same, np.array(labels), metric="balanced_accuracy").figures()

    assert figures["named_metric"] == "balanced_accuracy"
    assert figures["named_gain_interval"] == (0.0, 0.0)
    assert "named" not in figures


@pytest.mark.parametrize(
    ("method", "name"), [("stack", "One re-weighted trial (stack)"), ("soup", "One model (soup)")]
)
def test_one_member_is_not_called_an_ensemble(method: str, name: str) -> None:
    sentence = compare_counts(170, 6, 0, 4).sentence(method=method, n_members=1, cost_ratio=1.0)

    assert sentence.startswith(f"{name} is better than the best single trial")


def test_each_side_is_judged_by_its_own_decision() -> None:
    log_probabilities = np.log([[0.7, 0.3]] * 4)
    decision = Decision(rule="prior_corrected", priors=(0.9, 0.1))
    labels = np.array([0, 1, 1, 1])

    comparison = compare(log_probabilities, log_probabilities, labels, single_decision=decision)

    assert (comparison.accuracy, comparison.single_accuracy) == (0.25, 0.75)

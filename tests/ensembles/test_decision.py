import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensembles.decision import MOST_PROBABLE, Decision, choose_decision
from ensembles.errors import EnsembleError
from ensembles.metrics import accuracy, balanced_accuracy

LOGARITHMS = np.log(np.array([[0.7, 0.3], [0.85, 0.15], [0.5, 0.5]]))


def test_the_most_probable_class_is_the_first_of_equals() -> None:
    assert MOST_PROBABLE.decide(LOGARITHMS).tolist() == [0, 0, 0]


def test_a_rare_class_wins_where_it_is_more_probable_than_usual() -> None:
    # 0.7 / 0.8 < 0.3 / 0.2 but 0.85 / 0.8 > 0.15 / 0.2
    decision = Decision(rule="prior_corrected", priors=(0.8, 0.2))

    assert decision.decide(LOGARITHMS).tolist() == [1, 0, 1]


def test_scores_are_the_probabilities_of_equally_frequent_classes() -> None:
    decision = Decision(rule="prior_corrected", priors=(0.8, 0.2))

    # 0.7 / 0.8 = 0.875 and 0.3 / 0.2 = 1.5, normalized
    np.testing.assert_allclose(np.exp(decision.score(LOGARITHMS))[0], [0.875 / 2.375, 1.5 / 2.375])


@given(st.integers(0, 1000), st.integers(2, 6))
def test_equal_shares_decide_like_the_most_probable_class(seed: int, n_classes: int) -> None:
    logarithms = np.log(np.random.default_rng(seed).dirichlet(np.ones(n_classes), size=20))
    equal = Decision(rule="prior_corrected", priors=(1 / n_classes,) * n_classes)

    np.testing.assert_array_equal(equal.decide(logarithms), MOST_PROBABLE.decide(logarithms))


def test_true_probabilities_of_unequal_classes_gain_balanced_accuracy() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.9, 0.07, 0.03])
    labels = generator.choice(3, size=4000, p=shares)
    signals = generator.normal(size=(4000, 3))
    signals[np.arange(4000), labels] += 1.5
    # Bayes' rule for such signals: the log-odds of a class grow by 1.5 times its signal.
    true = 1.5 * signals + np.log(shares)
    true -= np.log(np.exp(true).sum(axis=1, keepdims=True))
    decision = choose_decision("balanced_accuracy", np.bincount(labels))

    corrected = decision.score(true)

    assert balanced_accuracy(corrected, labels) > balanced_accuracy(true, labels) + 0.1
    assert accuracy(corrected, labels) < accuracy(true, labels)


def test_only_balanced_accuracy_needs_the_shares() -> None:
    assert choose_decision("macro_f1", [3, 1]) == MOST_PROBABLE
    assert choose_decision("matthews", [3, 0]) == MOST_PROBABLE
    assert choose_decision("balanced_accuracy", [3, 1]) == Decision(
        rule="prior_corrected", priors=(0.75, 0.25)
    )


@pytest.mark.parametrize("priors", [(), (1.0,), (1.0, 0.0), (0.5, 0.6), (float("nan"), 0.5)])
def test_shares_that_no_images_have_are_refused(priors: tuple[float, ...]) -> None:
    with pytest.raises(EnsembleError, match="share of each of at least 2 classes"):
        Decision(rule="prior_corrected", priors=priors)


def test_shares_without_use_are_refused() -> None:
    with pytest.raises(EnsembleError, match="prior_corrected alone"):
        Decision(rule="most_probable", priors=(0.5, 0.5))


def test_another_number_of_classes_is_refused() -> None:
    decision = Decision(rule="prior_corrected", priors=(0.5, 0.25, 0.25))

    with pytest.raises(EnsembleError, match="shares of 3 classes, got predictions for 2"):
        decision.decide(LOGARITHMS)


@pytest.mark.parametrize("frequencies", [[5, 0], [5.0, float("inf")], [[1, 2], [3, 4]]])
def test_balanced_accuracy_without_images_of_a_class_is_refused(frequencies: list[float]) -> None:
    with pytest.raises(EnsembleError, match="frequency above 0 for each class"):
        choose_decision("balanced_accuracy", np.array(frequencies))

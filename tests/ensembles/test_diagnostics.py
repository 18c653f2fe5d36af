import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ensembles.builder import METHODS, build
from ensembles.diagnostics import Explanation, count_effective, explain_members
from ensembles.errors import EnsembleError
from ensembles.metrics import accuracy, log_loss
from ensembles.pool import Pool

PoolOf = Callable[[Sequence[Sequence[float]]], Pool]


def test_counts_of_images_are_worked_out_by_hand(pool_of: PoolOf) -> None:
    # Right: the first on images 0 to 2, the second on 1 and 3, the third on 1; none on 4.
    pool = pool_of(
        [
            [0.9, 0.9, 0.9, 0.1, 0.4],
            [0.3, 0.8, 0.4, 0.8, 0.4],
            [0.4, 0.8, 0.4, 0.4, 0.4],
        ]
    )
    # Means 0.53, 0.83, 0.57, 0.43, 0.40: right on images 0 to 2.
    ensemble = build(pool, method="soft", max_members=3)

    explanation = explain_members(ensemble, pool)

    by_name = {member.name: member for member in explanation.members}
    assert [by_name[name].only_right for name in "012"] == [(0, 2), (3,), ()]
    assert [by_name[name].n_corrected for name in "012"] == [0, 2, 2]
    assert [by_name[name].n_spoiled for name in "012"] == [0, 1, 0]
    assert [by_name[name].accuracy for name in "012"] == [0.6, 0.4, 0.2]
    assert explanation.accuracy == 0.6
    assert explanation.share_any_right == 0.8
    place = {name: position for position, name in enumerate(ensemble.names)}
    shared, double = explanation.shared_errors, explanation.double_faults
    # Errors {3, 4}, {0, 2, 4}, {0, 2, 3, 4}.
    assert shared[place["0"]][place["1"]] == pytest.approx(1 / 4)
    assert shared[place["1"]][place["2"]] == pytest.approx(3 / 4)
    assert double[place["0"]][place["2"]] == pytest.approx(2 / 5)
    assert double[place["2"]][place["2"]] == pytest.approx(4 / 5)
    assert explanation.effective_by_weight == pytest.approx(3)


def test_what_a_member_adds_is_lost_by_the_fit_without_it(
    random_pool: Callable[..., Pool],
) -> None:
    pool = random_pool(n_images=1200)
    fit_pool = pool.select_images(np.arange(600))
    fresh = pool.select_images(np.arange(600, 1200))
    ensemble = build(fit_pool, method="llp", max_members=4)

    explanation = explain_members(ensemble, fit_pool, fresh=fresh)

    without = build(
        fit_pool.select_names(ensemble.names[1:]), method="llp", max_members=3
    ).predict(fresh)
    whole = ensemble.predict(fresh)
    heaviest = explanation.members[0]
    assert heaviest.name == ensemble.names[0]
    assert heaviest.log_loss_added == pytest.approx(
        log_loss(without, fresh.labels) - log_loss(whole, fresh.labels)
    )
    assert heaviest.accuracy_added == pytest.approx(
        accuracy(whole, fresh.labels) - accuracy(without, fresh.labels)
    )
    assert explanation.is_fresh
    assert (explanation.n_images, explanation.log_loss) == (600, log_loss(whole, fresh.labels))


def test_a_copy_adds_nothing_and_counts_as_the_same_member(
    random_pool: Callable[..., Pool],
) -> None:
    one = random_pool(n_models=1)
    copies = Pool.from_arrays(
        log_probabilities=np.repeat(one.log_probabilities, 3, axis=0), labels=one.labels
    )

    explanation = explain_members(build(copies, method="soft"), copies)

    assert [member.log_loss_added for member in explanation.members] == pytest.approx(
        [0] * 3, abs=1e-8
    )
    assert [member.only_right for member in explanation.members] == [(), (), ()]
    assert explanation.effective_by_weight == pytest.approx(3)
    assert explanation.effective_by_errors == pytest.approx(1)


def test_members_that_never_err_count_as_the_same(pool_of: PoolOf) -> None:
    pool = pool_of([[0.9, 0.8], [0.8, 0.9]])

    explanation = explain_members(build(pool, method="soft"), pool)

    assert explanation.shared_errors == ((1.0, 1.0), (1.0, 1.0))
    assert explanation.effective_by_errors == pytest.approx(1)


def test_members_whose_errors_are_apart_count_in_full(pool_of: PoolOf) -> None:
    pool = pool_of([[0.9, 0.1], [0.1, 0.9]])

    explanation = explain_members(build(pool, method="soft"), pool)

    assert explanation.effective_by_errors == pytest.approx(2)


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_effective_numbers_lie_between_one_and_all(seed: int, n_members: int) -> None:
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.ones(n_members))
    similarities = generator.random((n_members, n_members))
    np.fill_diagonal(similarities, 1)

    by_weight = count_effective(shares, np.eye(n_members))

    assert 1 - 1e-9 <= by_weight <= n_members + 1e-9
    assert by_weight == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert 1 - 1e-9 <= count_effective(shares, similarities) <= by_weight + 1e-9


@pytest.mark.parametrize("method", [method for method in METHODS if method != "soup"])
def test_every_method_is_explained(method: str, random_pool: Callable[..., Pool]) -> None:
    pool = random_pool(n_images=600)
    ensemble = build(pool, method=method)  # type: ignore[arg-type]

    explanation = explain_members(ensemble, pool)

    assert [member.name for member in explanation.members] == list(ensemble.names)
    text = json.dumps(explanation.to_json())
    assert TypeAdapter(Explanation).validate_json(text, strict=True) == explanation


def test_the_only_member_has_no_rest_to_compare_with(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool()

    explanation = explain_members(build(pool, method="single"), pool)

    (member,) = explanation.members
    assert (member.log_loss_added, member.accuracy_added) == (None, None)
    assert len(member.only_right) == round(member.accuracy * pool.n_images)
    assert not explanation.is_fresh


def test_a_member_without_predictions_is_refused(random_pool: Callable[..., Pool]) -> None:
    pool = random_pool()
    ensemble = build(pool, method="soft")

    with pytest.raises(EnsembleError, match=f"no predictions of {ensemble.names[0]}"):
        explain_members(ensemble, pool, fresh=pool.select_names(ensemble.names[1:]))

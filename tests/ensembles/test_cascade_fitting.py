import numpy as np
import pytest

from ensembles.builder import build
from ensembles.cascade_fitting import can_cascade, find_lowest_harmless, fit_cascade
from ensembles.decision import Decision
from ensembles.errors import EnsembleError
from ensembles.metrics import accuracy
from ensembles.pool import Pool

CONFIDENCE = np.array([0.7, 0.8, 0.9, 0.8])
LOST = np.array([1, -1, 0, 1])
"""By falling confidence, 0, then 0 + sqrt(2) at 0.8, then 1 + sqrt(3) images count as lost."""


def make_pool(seed: int, n_images: int = 1500) -> Pool:
    """Draw four models that find the same images easy; the later ones are better and dearer."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=n_images)
    ease = generator.exponential(2.0, size=(1, n_images, 1))
    skill = np.array([0.8, 1.0, 1.2, 1.4]).reshape(4, 1, 1)
    logits = 1.5 * generator.normal(size=(4, n_images, 4)) + skill * ease * np.eye(4)[labels]
    return Pool.from_arrays(logits=logits, labels=labels, costs=[1.0, 2.0, 4.0, 8.0])


@pytest.mark.parametrize(
    ("allowed", "threshold"), [(-1.0, None), (0.0, 0.9), (1.4, 0.9), (1.5, 0.8), (2.8, 0.7)]
)
def test_the_threshold_is_the_lowest_above_which_too_much_is_lost_nowhere(
    allowed: float, threshold: float | None
) -> None:
    assert find_lowest_harmless(CONFIDENCE, LOST, allowed) == threshold


def test_what_is_gained_further_down_does_not_pay_for_a_loss_above() -> None:
    gained_later = np.array([-1, -1, 1, -1])

    assert find_lowest_harmless(np.array([0.6, 0.7, 0.9, 0.5]), gained_later, 1.0) is None


def test_where_no_image_waits_there_is_no_threshold() -> None:
    none = np.zeros(0)

    assert find_lowest_harmless(none, none.astype(np.int64), 1.0) is None


def test_where_everything_may_be_lost_the_first_member_decides_alone() -> None:
    pool = make_pool(0)

    cascade = fit_cascade(build(pool, method="llp", max_members=4), pool, max_loss=1.0)

    assert [stage.n_members for stage in cascade.stages] == [1, 4]
    members = pool.select([0, 1, 2, 3])
    assert (cascade.run(members.log_probabilities).n_members_run == 1).all()


def test_where_nothing_may_be_lost_nothing_is_lost_on_the_fitting_images() -> None:
    pool = make_pool(1)
    ensemble = build(pool, method="llp", max_members=4)
    members = pool.select_names(ensemble.names)

    result = fit_cascade(ensemble, pool, max_loss=0.0).run(members.log_probabilities)

    full = accuracy(ensemble.predict(pool), pool.labels)
    assert accuracy(result.log_probabilities, pool.labels) >= full


def test_fresh_images_lose_no_more_than_was_allowed_on_average() -> None:
    lost = []
    for seed in range(8):
        everything = make_pool(seed, n_images=6500)
        pool = everything.select_images(np.arange(1500))
        fresh = everything.select_images(np.arange(1500, 6500))
        ensemble = build(pool, method="llp", max_members=4)
        members = fresh.select_names(ensemble.names)
        result = fit_cascade(ensemble, pool, max_loss=0.002).run(members.log_probabilities)
        assert result.n_members_run.mean() < len(ensemble.names) - 0.5
        full = accuracy(ensemble.predict(fresh), fresh.labels)
        lost.append(full - accuracy(result.log_probabilities, fresh.labels))

    assert np.mean(lost) <= 0.002


def test_the_cheap_members_run_first_where_they_are_as_good() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=900)
    logits = generator.normal(size=(3, 900, 3)) + 3 * np.eye(3)[labels]
    pool = Pool.from_arrays(logits=logits, labels=labels, costs=[9.0, 1.0, 3.0])
    ensemble = build(pool, method="soft", max_members=3)

    cascade = fit_cascade(ensemble, pool, max_loss=0.01)

    assert [ensemble.names[position] for position in cascade.order] == ["1", "2", "0"]


def test_only_several_members_with_probabilities_can_cascade() -> None:
    pool = make_pool(2)

    assert can_cascade(build(pool, method="soft"))
    assert not can_cascade(build(pool, method="vote"))
    assert not can_cascade(build(pool, method="single"))


@pytest.mark.parametrize("max_loss", [-0.1, 1.5, float("nan")])
def test_a_loss_that_is_no_share_is_refused(max_loss: float) -> None:
    pool = make_pool(3)

    with pytest.raises(EnsembleError, match="share between 0 and 1"):
        fit_cascade(build(pool, method="soft"), pool, max_loss=max_loss)


def test_nothing_is_lost_of_the_labels_that_a_decision_gives() -> None:
    pool = make_pool(5)
    decision = Decision(rule="prior_corrected", priors=(0.7, 0.1, 0.1, 0.1))
    ensemble = build(pool, method="llp", max_members=4)
    members = pool.select_names(ensemble.names)

    result = fit_cascade(ensemble, pool, max_loss=0.0, decision=decision).run(
        members.log_probabilities
    )

    decided, whole = (
        accuracy(decision.score(each), pool.labels)
        for each in (result.log_probabilities, ensemble.predict(pool))
    )
    assert decided == pytest.approx(whole)

import numpy as np
import pytest

from ensembles.builder import build
from ensembles.cascade import Cascade, Stage
from ensembles.cascade_fitting import fit_cascade
from ensembles.combination import Combination
from ensembles.errors import EnsembleError
from ensembles.pool import Pool


def _pool(n_images: int = 1500, n_models: int = 6, seed: int = 0) -> Pool:
    """Models that see the same easy and hard images, each with errors of its own."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=n_images)
    easy = generator.exponential(3.0, size=(1, n_images, 1))
    logits = generator.normal(size=(n_models, n_images, 4)) * 1.5
    logits += easy * np.eye(4)[labels]
    return Pool.from_arrays(
        logits=logits, labels=labels, costs=np.arange(1, n_models + 1, dtype=np.float64)
    )


def _log(rows: list[list[float]]) -> np.ndarray:
    logarithms: np.ndarray = np.log(np.array(rows))
    return logarithms


def _soft(n_members: int) -> Combination:
    return Combination(method="soft", space="probability", weights=(1 / n_members,) * n_members)


def test_an_image_stops_at_the_first_stage_that_is_sure_of_it() -> None:
    cascade = Cascade(
        order=(1, 0),
        stages=(
            Stage(combination=_soft(1), threshold=0.9),
            Stage(combination=_soft(2), threshold=0.0),
        ),
    )
    first = _log([[0.5, 0.5], [0.2, 0.8]])
    second = _log([[0.95, 0.05], [0.6, 0.4]])
    result = cascade.run(np.stack([first, second]))
    assert result.n_members_run.tolist() == [1, 2]
    np.testing.assert_allclose(np.exp(result.log_probabilities), [[0.95, 0.05], [0.4, 0.6]])
    # The second member runs first and costs 3; one image of two needs the other's 1 as well.
    assert result.cost_share(cascade, np.array([1.0, 3.0])) == pytest.approx((3 + 4) / 2 / 4)


@pytest.mark.parametrize("method", ["llp", "bagged_greedy", "simplex", "soft", "stack"])
def test_little_accuracy_goes_and_much_of_the_cost(method: str) -> None:
    pool = _pool(seed=1)
    ensemble = build(pool, method=method, max_members=4)  # type: ignore[arg-type]
    cascade = fit_cascade(ensemble, pool, max_loss=0.002)
    members = pool.select_names(ensemble.names)
    result = cascade.run(members.log_probabilities)
    full = ensemble.predict(pool)
    lost = (full.argmax(axis=1) == pool.labels).mean() - (
        result.log_probabilities.argmax(axis=1) == pool.labels
    ).mean()
    assert lost <= 0.002 + 1e-12
    assert result.cost_share(cascade, members.costs) < 0.8


def test_an_image_that_needs_all_members_gets_what_the_ensemble_says() -> None:
    pool = _pool(seed=2)
    ensemble = build(pool, method="llp", max_members=4)
    cascade = fit_cascade(ensemble, pool)
    members = pool.select_names(ensemble.names)
    result = cascade.run(members.log_probabilities)
    to_the_end = result.n_members_run == len(ensemble.names)
    assert to_the_end.any()
    np.testing.assert_allclose(
        result.log_probabilities[to_the_end], ensemble.predict(pool)[to_the_end], atol=1e-9
    )


def test_a_member_without_a_stage_lets_no_image_go() -> None:
    cascade = Cascade(order=(0, 1), stages=(Stage(combination=_soft(2), threshold=0.0),))
    predictions = np.stack([_log([[0.9, 0.1]]), _log([[0.7, 0.3]])])
    result = cascade.run(predictions)
    assert result.n_members_run.tolist() == [2]
    np.testing.assert_allclose(np.exp(result.log_probabilities), [[0.8, 0.2]])


def test_a_member_runs_only_on_the_images_that_still_need_it() -> None:
    pool = _pool(seed=5)
    ensemble = build(pool, method="llp", max_members=3)
    cascade = fit_cascade(ensemble, pool, max_loss=0.01)
    members = pool.select_names(ensemble.names).log_probabilities
    seen: list[int] = []

    def predict(position: int, rows: np.ndarray) -> np.ndarray:
        seen.append(len(rows))
        chosen: np.ndarray = members[position, rows]
        return chosen

    n_images, n_classes = members.shape[1:]
    lazy = cascade.run_lazily(predict, n_images=n_images, n_classes=n_classes)
    np.testing.assert_array_equal(lazy.log_probabilities, cascade.run(members).log_probabilities)
    assert seen == [int((lazy.n_members_run > position).sum()) for position in range(len(seen))]
    assert seen[-1] < seen[0]


def test_of_one_member_it_is_that_member() -> None:
    pool = _pool(seed=3)
    ensemble = build(pool, method="single")
    cascade = fit_cascade(ensemble, pool)
    members = pool.select_names(ensemble.names)
    result = cascade.run(members.log_probabilities)
    assert (result.n_members_run == 1).all()
    np.testing.assert_allclose(result.log_probabilities, ensemble.predict(pool), atol=1e-9)
    assert result.cost_share(cascade, members.costs) == 1


def test_votes_are_refused() -> None:
    pool = _pool(seed=4)
    with pytest.raises(EnsembleError, match="votes are no probabilities"):
        fit_cascade(build(pool, method="vote"), pool)


def test_stages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EnsembleError, match="stages of more and more members up to 2"):
        Cascade(order=(0, 1), stages=(Stage(combination=_soft(1), threshold=0.0),))
    with pytest.raises(EnsembleError, match="must decide everything"):
        Cascade(order=(0,), stages=(Stage(combination=_soft(1), threshold=0.5),))
    with pytest.raises(EnsembleError, match="name each member once"):
        Cascade(order=(1,), stages=(Stage(combination=_soft(1), threshold=0.0),))
    with pytest.raises(EnsembleError, match="between 0 and 1"):
        Stage(combination=_soft(1), threshold=1.5)

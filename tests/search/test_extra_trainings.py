import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from optuna.trial import TrialState
from runs import Finished

from search import devices
from search.assignments import Assignment, Fold, Order, assignment_of, by_order, order_name
from search.data.folds import assign_folds, write_folds
from search.data.roles import read_roles
from search.data.store import open_store
from search.devices import Slot
from search.errors import SearchError
from search.extra_trainings import (
    Effort,
    Trained,
    planned_epochs,
    train_again,
)
from search.loop import run_trials
from search.storage import open_study
from search.study import Study, load_study
from search.workplace import open_workplace

ONE_THREAD = Slot(number=0, device="cpu", n_threads=1)


@pytest.fixture(autouse=True)
def _on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker have one thread: two are very slow where the machine has other work."""
    monkeypatch.setattr(devices, "n_usable_cores", lambda: 1)


@pytest.fixture
def study(finished: Finished, tmp_path: Path) -> Study:
    """Return a copy of the finished study, which a test may change."""
    shutil.copytree(finished.study.paths.folder, tmp_path / "whole")
    return load_study("whole", studies=tmp_path)


def order(study: Study, number: int, *, seed: int, name: str, seconds: float = 0.0) -> Order:
    trial = study.trials()[number]
    return Order(
        name=name,
        parameters=trial.params,
        assignment=Assignment(seed=seed, epochs=planned_epochs(study, trial)),
        expected_seconds=seconds,
    )


def own_seed(study: Study, number: int) -> int:
    seed = study.record.config.seed
    return assignment_of({}, study_seed=seed, trial_number=number).seed


def predictions(trained: Trained, name: str, role: str) -> np.ndarray:
    files = trained.study.paths.trial(trained.trials[name].number)
    stored: np.ndarray = np.load(files.predictions(role))
    return stored


@pytest.mark.slow
def test_a_trial_ordered_again_with_its_own_seed_is_the_same_network(study: Study) -> None:
    best = study.leaders()[0].number
    orders = [
        order(study, best, seed=own_seed(study, best), name="same"),
        order(study, best, seed=1, name="other"),
    ]

    trained = train_again(study, orders, kind="seeds", effort=Effort())

    own = np.load(study.paths.trial(best).predictions("test"))
    np.testing.assert_array_equal(predictions(trained, "same", "test"), own)
    assert not np.array_equal(predictions(trained, "other", "test"), own)
    assert trained.trials["same"].user_attrs["log_loss"] == pytest.approx(
        study.leaders()[0].user_attrs["log_loss"]
    )
    assert not trained.failures
    assert not trained.end.interrupted
    assert load_study("whole", studies=study.paths.folder.parent).counts().finished == 6


@pytest.mark.slow
def test_what_was_trained_is_found_again_and_only_the_rest_is_run(study: Study) -> None:
    first = train_again(
        study, [order(study, 0, seed=1, name="one")], kind="seeds", effort=Effort()
    )
    began = first.trials["one"].datetime_start

    both = train_again(
        study,
        [order(study, 0, seed=1, name="one"), order(study, 0, seed=2, name="two")],
        kind="seeds",
        effort=Effort(),
    )

    assert both.trials["one"].datetime_start == began
    assert sorted(by_order(both.study.trials())) == ["one", "two"]
    assert [order_name(trial) for trial in both.study.trials()] == ["one", "two"]


@pytest.mark.slow
def test_an_order_is_not_begun_when_its_time_is_not_left_and_is_run_later(study: Study) -> None:
    orders = [order(study, 0, seed=1, name="long", seconds=3600.0)]

    late = train_again(study, orders, kind="seeds", effort=Effort(ends_at=time.monotonic() + 60))
    assert not late.trials
    assert not late.failures
    assert late.end.out_of_time
    assert [trial.state for trial in late.study.trials()] == [TrialState.WAITING]

    later = train_again(study, orders, kind="seeds", effort=Effort())
    assert list(later.trials) == ["long"]
    assert len(later.study.trials()) == 1


@pytest.mark.slow
def test_an_order_that_is_not_wanted_any_more_is_not_run(study: Study) -> None:
    interrupted = Effort(stop_requested=lambda: True)
    stopped = train_again(
        study, [order(study, 0, seed=1, name="old")], kind="seeds", effort=interrupted
    )
    assert stopped.end.interrupted
    assert not stopped.trials
    assert stopped.n_missing == 1
    open_study(stopped.study.paths).ask()  # begun by a process that is no more

    trained = train_again(
        study, [order(study, 0, seed=2, name="new")], kind="seeds", effort=Effort()
    )

    assert list(trained.trials) == ["new"]
    assert list(by_order(trained.study.trials())) == ["new"]


def test_a_second_process_is_refused(study: Study) -> None:
    paths = study.paths.nested("seeds")
    paths.folder.mkdir()

    with (
        FileLock(paths.supervisor_lock),
        pytest.raises(SearchError, match="another process is training the seeds of study 'whole'"),
    ):
        train_again(study, [order(study, 0, seed=1, name="x")], kind="seeds", effort=Effort())


def order_fold(study: Study, kind: str) -> Study:
    """Order one training of the second of three folds, and return the study that it waits in."""
    folds = assign_folds(
        open_store(study.record.store), read_roles(study.paths.roles), n_folds=3, seed=0
    )
    write_folds(study.paths.nested(kind).folds, folds)
    assignment = Assignment(seed=1, epochs=4.0, fold=Fold(number=2, of=3))
    ordered = Order(name="fold", parameters=study.trials()[0].params, assignment=assignment)
    stopped = Effort(stop_requested=lambda: True)
    return train_again(study, [ordered], kind=kind, effort=stopped).study


@pytest.mark.slow
@pytest.mark.usefixtures("saved_after_every_round")
def test_a_fold_training_that_is_broken_off_equals_an_unbroken_one(study: Study) -> None:
    unbroken, broken = (order_fold(study, kind) for kind in ("unbroken", "broken"))
    n_interruptions = 0

    run_trials(unbroken.paths, ONE_THREAD, lambda: False, n_trials=1, deadline=None)
    while broken.counts().finished < 1:
        stops = iter([False] * 5 + [True] * 100)  # asked before each step; a round has three
        run_trials(broken.paths, ONE_THREAD, stops.__next__, n_trials=1, deadline=None)
        n_interruptions += 1
        assert n_interruptions < 30

    one, other = (nested.trials()[0] for nested in (unbroken, broken))
    assert n_interruptions > 1
    assert one.intermediate_values == other.intermediate_values
    assert one.user_attrs["best_round"] == len(one.intermediate_values)  # the last one is kept
    for role in ("fold", "test"):
        np.testing.assert_array_equal(
            *(np.load(nested.paths.trial(0).predictions(role)) for nested in (unbroken, broken))
        )


def test_a_fold_is_predicted_by_a_network_that_learns_from_all_others(study: Study) -> None:
    nested = order_fold(study, "folds-3")
    place = open_workplace(nested.paths, nested.record, ONE_THREAD, lambda: False)
    roles = read_roles(study.paths.roles)
    unsealed = np.concatenate([roles.train, roles.stop, roles.ens])

    predicted = []
    for number in (1, 2, 3):
        fold = Fold(number=number, of=3)
        assigned = place.assigned(Assignment(seed=0, epochs=1.0, fold=fold))
        learned, unseen = assigned.images.rows.tolist(), assigned.rows["fold"].tolist()
        assert not set(learned) & set(unseen)
        assert sorted(learned + unseen) == sorted(unsealed)
        assert assigned.rows["test"].tolist() == roles.test.tolist()
        assert set(assigned.round_rows.tolist()) <= set(unseen)
        predicted += unseen
    assert sorted(predicted) == sorted(unsealed)


def test_a_search_trains_as_before(study: Study) -> None:
    place = open_workplace(study.paths, study.record, ONE_THREAD, lambda: False)

    assert place.assigned(Assignment(seed=0)) is place

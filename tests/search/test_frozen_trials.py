import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from search.drivers import Connection
from search.frozen_trials import read_trials

INFINITE, UNDEFINED = float("inf"), float("nan")


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[RDBStorage]:
    """Return Optuna's own storage, with a trial of each kind in it."""
    storage = RDBStorage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(storage=storage, study_name="kinds")
    params = {"width": 16, "rate": 0.1, "norm": "batch", "flips": None}
    distributions = {
        "width": IntDistribution(8, 48, step=8),
        "rate": FloatDistribution(1e-3, 1.0, log=True),
        "norm": CategoricalDistribution(("batch", "none")),
        "flips": CategoricalDistribution((None, True)),
    }
    for value in (0.25, INFINITE, -INFINITE):
        study.add_trial(
            create_trial(
                value=value,
                params=params,
                distributions=distributions,
                user_attrs={"recipe": {"depth": [1, 2]}, "slot": 0, "accuracy": 0.5},
                system_attrs={"artifacts": "x"},
                intermediate_values={1: 0.75, 3: INFINITE, 2: -INFINITE},
            )
        )
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={4: 0.5}))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.enqueue_trial({"width": 8}, user_attrs={"why": "known"})
    running = study.ask()
    running.suggest_int("width", 8, 48, step=8)
    running.report(1.5, 1)
    study.enqueue_trial({"width": 48})
    yield storage
    storage.remove_session()
    storage.engine.dispose()


@pytest.fixture
def connection(storage: RDBStorage, tmp_path: Path) -> Iterator[Connection]:
    assert storage.get_all_studies()
    with closing(sqlite3.connect(tmp_path / "study.db")) as driver:
        yield Connection(driver, is_server=False)


def test_trials_are_those_that_optuna_reads(storage: RDBStorage, connection: Connection) -> None:
    theirs = storage.get_all_trials(1)

    ours = read_trials(connection, range(1, 9))

    assert len(ours) == 7
    assert ours == theirs
    for trial, other in zip(ours, theirs, strict=True):
        assert list(trial.params) == list(other.params)
        assert list(trial.user_attrs) == list(other.user_attrs)
        assert trial.datetime_start == other.datetime_start


def test_a_value_that_is_no_number_stays_one(storage: RDBStorage, connection: Connection) -> None:
    trial_id = storage.create_new_trial(1)
    storage.set_trial_intermediate_value(trial_id, 1, UNDEFINED)

    (trial,) = read_trials(connection, [trial_id])

    assert trial.intermediate_values[1] != trial.intermediate_values[1]


def test_only_the_trials_asked_for_are_read(connection: Connection) -> None:
    assert [trial.number for trial in read_trials(connection, [2, 6, 99])] == [1, 5]
    assert read_trials(connection, []) == []

"""Studies with thousands of finished trials, made in seconds."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.owners import ATTRIBUTE, this_process
from search.storage import open_study
from search.study import Study
from spaces.space import suggest_recipe

N_REPORTS = 24
_N_DIFFERENT = 200
_TABLES = (
    "trial_params",
    "trial_values",
    "trial_user_attributes",
    "trial_system_attributes",
    "trial_intermediate_values",
)


def fill_study(study: Study, n_trials: int) -> None:
    """Give a study more finished trials: random points of its space, with all that trials leave.

    The first 200 are added as Optuna does it, 30 ms each; the others are copies of their rows,
    with other values. Waiting trials are ended, so that a sampler is asked for the next one.

    Args:
        study: A study that no process works on.
        n_trials: Trials that it shall have.
    """
    opened = open_study(study.paths)
    for waiting in opened.get_trials(states=(TrialState.WAITING,)):
        opened._storage.set_trial_state_values(waiting._trial_id, TrialState.FAIL)
    n_there = len(opened.get_trials(deepcopy=False))
    for trial in _random_trials(study, min(n_trials - n_there, _N_DIFFERENT)):
        opened.add_trial(trial)
    with closing(sqlite3.connect(study.paths.database)) as connection:
        _copy_rows(connection, n_trials)
        connection.commit()


def _random_trials(study: Study, count: int) -> Iterator[FrozenTrial]:
    """Make complete trials of random points, with values that they could have."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    memory = optuna.create_study(sampler=RandomSampler(seed=0))
    optuna.logging.set_verbosity(verbosity)
    for number in range(count):
        asked = memory.ask()
        recipe = suggest_recipe(asked, study.record.space, study.record.task)
        value = 1 + (37 * number % 101) / 101
        yield create_trial(
            state=TrialState.COMPLETE,
            value=value,
            params=asked.params,
            distributions=asked.distributions,
            user_attrs={
                ATTRIBUTE: this_process().to_json(),
                "recipe": recipe.to_json(),
                "slot": 0,
                "accuracy": 0.5,
                "log_loss": value,
                "best_round": N_REPORTS,
                "epochs": float(N_REPORTS),
                "parameters": 100_000,
                "milliseconds": 0.1,
                "seconds": 20.0,
            },
            intermediate_values={step: 3 - step / N_REPORTS for step in range(1, N_REPORTS + 1)},
        )


def _copy_rows(connection: sqlite3.Connection, n_trials: int) -> None:
    """Repeat the newest finished trials until there are enough."""
    while True:
        n_there, last_id = connection.execute(
            "SELECT COUNT(*), MAX(trial_id) FROM trials"
        ).fetchone()
        missing = n_trials - n_there
        if missing <= 0:
            return
        count = min(missing, _N_DIFFERENT)
        first_id = last_id - count
        connection.execute(
            "INSERT INTO trials (trial_id, number, study_id, state, datetime_start, "
            "datetime_complete) SELECT trial_id + ?, number + ?, study_id, state, datetime_start, "
            "datetime_complete FROM trials WHERE trial_id > ?",
            (count, count, first_id),
        )
        for table in _TABLES:
            _key, *columns = (row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
            others = ", ".join(column for column in columns if column != "trial_id")
            connection.execute(
                f"INSERT INTO {table} (trial_id, {others}) SELECT trial_id + ?, {others} "  # noqa: S608
                f"FROM {table} WHERE trial_id > ? AND trial_id <= ?",
                (count, first_id, last_id),
            )
        connection.execute(
            "UPDATE trial_values SET value = value + 0.001 * trial_id / ? WHERE trial_id > ?",
            (n_trials, last_id),
        )

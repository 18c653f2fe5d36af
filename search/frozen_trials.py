"""Reads many trials of an SQLite study at once.

Optuna makes an object of SQLAlchemy for each parameter, attribute and report, and parses each
distribution twice: 13 s for 5,000 trials, which every command, every worker that starts and the
dashboard would wait. Plain rows and shared distributions take a tenth of that.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from search.drivers import Connection

_BATCH = 1000
"""Trials whose rows are in memory at a time."""
_NOT_FINITE = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}

Rows: TypeAlias = Mapping[int, list[tuple[Any, ...]]]
"""By a trial's id."""


def read_trials(connection: Connection, trial_ids: Sequence[int]) -> list[FrozenTrial]:
    """Read trials; a finished one is read with all that it left.

    Args:
        connection: To a database of Optuna's schema 12.
        trial_ids: Optuna's ids, rising.

    Returns:
        The trials, equal to those that Optuna reads; one that is not there is left out.
    """
    batches = (trial_ids[start : start + _BATCH] for start in range(0, len(trial_ids), _BATCH))
    return [trial for batch in batches for trial in _read_batch(connection, batch)]


def _read_batch(connection: Connection, trial_ids: Sequence[int]) -> Iterator[FrozenTrial]:
    # Before what belongs to it, since a trial's state is written after that.
    trials = _rows(
        connection, trial_ids, "trials", "number, state, datetime_start, datetime_complete"
    )
    params = _rows(
        connection,
        trial_ids,
        "trial_params",
        "param_id, param_name, param_value, distribution_json",
    )
    values = _rows(connection, trial_ids, "trial_values", "objective, value, value_type")
    user = _rows(connection, trial_ids, "trial_user_attributes", "key, value_json")
    system = _rows(connection, trial_ids, "trial_system_attributes", "key, value_json")
    reports = _rows(
        connection,
        trial_ids,
        "trial_intermediate_values",
        "step, intermediate_value, intermediate_value_type",
    )
    for trial_id, ((number, state, began, ended),) in trials.items():
        asked = params.get(trial_id, [])
        distributions = {name: _distribution(text) for _, name, _, text in asked}
        yield FrozenTrial(
            number=number,
            state=TrialState[state],
            value=None,
            values=[_number(*stored) for _, *stored in values.get(trial_id, [])] or None,
            datetime_start=_local_time(began),
            datetime_complete=_local_time(ended),
            params={
                name: distributions[name].to_external_repr(value) for _, name, value, _ in asked
            },
            distributions=distributions,
            user_attrs={key: json.loads(text) for key, text in user.get(trial_id, [])},
            system_attrs={key: json.loads(text) for key, text in system.get(trial_id, [])},
            intermediate_values={
                step: _number(*stored) for step, *stored in reports.get(trial_id, [])
            },
            trial_id=trial_id,
        )


def _rows(connection: Connection, ids: Sequence[int], table: str, columns: str) -> Rows:
    """Return the rows of some trials, in the order of their first column."""
    first = columns.partition(",")[0]
    among, value = connection.among(ids)
    found = connection.execute(  # names of our own, no text of anybody else
        f"SELECT trial_id, {columns} FROM {table} "  # noqa: S608
        f"WHERE trial_id {among} ORDER BY trial_id, {first}",
        (value,),
    )
    return {
        trial_id: [row[1:] for row in rows] for trial_id, rows in groupby(found, key=itemgetter(0))
    }


@lru_cache(maxsize=10_000)
def _distribution(text: str) -> BaseDistribution:
    """Parse a distribution once; the trials of a study share a few dozen of them."""
    return json_to_distribution(text)


def _number(value: float | None, kind: str) -> float:
    return _NOT_FINITE[kind] if value is None else value


def _local_time(stored: str | datetime | None) -> datetime | None:
    """Return a time as Optuna does: stored in UTC, told in local time, without a zone."""
    if stored is None:
        return None
    time = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)

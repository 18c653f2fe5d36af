"""The trials of a study as the dashboard's page asks for them, fast enough for thousands.

The dashboard writes the distribution of each parameter of each trial anew, and merges them all at
each poll: 11 s for the page of 5,000 trials, and 2 s for each poll after it. Distributions are
few, and a finished trial does not change; written once, the page takes 2 s, and a poll none.
"""

import copy
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import WSGIApplication, WSGIEnvironment

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty
from optuna_dashboard._serializer import serialize_distribution, serialize_frozen_trial

from search.wsgi_answers import StartResponse, answer_of

logger = logging.getLogger(__name__)

_STUDY = re.compile(r"/api/studies/(\d+)/?")
_CHECKED = 100
"""One trial in so many is also written by the dashboard itself, and compared."""


def with_quick_trials(application: Any, storage: BaseStorage) -> WSGIApplication:
    """Answer requests for a study's trials ourselves; all else is the dashboard's.

    Args:
        application: The dashboard.
        storage: Where the studies are; it must have a cache of its finished trials.
    """
    writers: dict[int, _Writer] = {}

    def respond(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match = _STUDY.fullmatch(environ.get("PATH_INFO", ""))
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        after = query.get("after", ["0"])[0]
        if environ["REQUEST_METHOD"] != "GET" or not match or not after.isdecimal():
            return application(environ, start_response)  # type: ignore[no-any-return]
        study_id = int(match[1])
        if study_id not in writers:
            writers[study_id] = _Writer(storage=storage, study_id=study_id)
            application._inmemory_cache._cached_extra_study_property_cache[study_id] = _Merged()
        # All but the trials: so many there are not.
        answer = answer_of(application, {**environ, "QUERY_STRING": f"after={10**12}"})
        if not answer.status.startswith("200"):
            return answer.send(start_response)
        document = json.loads(answer.body)
        del document["trials"]
        trials = ", ".join(writers[study_id].write(int(after)))
        text = f'{json.dumps(document)[:-1]}, "trials": [{trials}]}}'
        return replace(answer, body=text.encode()).send(start_response)

    return respond


@dataclass(kw_only=True)
class _Writer:
    """Writes the trials of one study, and keeps what it wrote of finished ones."""

    storage: BaseStorage
    study_id: int
    _written: dict[int, str] = field(default_factory=dict)
    _attributes: Mapping[str, Any] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)
    _as_theirs: bool = True
    """Whether what we wrote so far is what the dashboard writes."""

    def write(self, after: int) -> list[str]:
        """Return the trials from the given one on, each as JSON."""
        with self._lock:
            attributes = self.storage.get_study_system_attrs(self.study_id)
            if attributes != self._attributes:  # among them are the notes on trials
                self._written.clear()
                self._attributes = copy.deepcopy(attributes)
            trials = self.storage.get_all_trials(self.study_id, deepcopy=False)
            return [self._of(trial) for trial in trials[after:]]

    def _of(self, trial: FrozenTrial) -> str:
        text = self._written.get(trial.number)
        if text is None:
            text = self._new(trial)
            if trial.state.is_finished():
                self._written[trial.number] = text
        return text

    def _new(self, trial: FrozenTrial) -> str:
        text = write_trial(trial, self.study_id, self._attributes) if self._as_theirs else ""
        if text and trial.number % _CHECKED:
            return text
        theirs = serialize_frozen_trial(self.study_id, trial, dict(self._attributes))
        if text and json.loads(text) != theirs:
            logger.warning("the dashboard writes trials in a way of its own; it will be slower")
            self._as_theirs = False
        return json.dumps(theirs)


class _Merged(_CachedExtraStudyProperty):  # type: ignore[misc]  # a class without types
    """What all trials of a study have in common; the dashboard's own begins anew at each poll."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: set[int] = set()
        self._shapes: dict[tuple[int, ...], list[BaseDistribution]] = {}

    def update(self, trials: list[FrozenTrial]) -> None:
        """Merge the trials that were not there, or not finished, the last time."""
        new = [trial for trial in trials if trial.number not in self._numbers]
        self._cursor = -1
        super().update(new)
        self._numbers.update(trial.number for trial in new if trial.state.is_finished())

    def _update_search_space(self, trial: FrozenTrial) -> None:
        """Merge the distributions of a trial, unless those of one like it were merged before.

        Distributions are shared, so the same ones are the same objects; those that were merged
        are kept, so that no other takes the number of one.
        """
        distributions = list(trial.distributions.values())
        shape = tuple(map(id, distributions))
        if shape not in self._shapes:
            self._shapes[shape] = distributions
            super()._update_search_space(trial)


def write_trial(trial: FrozenTrial, study_id: int, study_attributes: Mapping[str, Any]) -> str:
    """Return a trial as JSON, equal to what the dashboard makes of it.

    Args:
        trial: The trial.
        study_id: Optuna's id of its study.
        study_attributes: System attributes of the study, which hold notes on trials.
    """
    bare = copy.copy(trial)
    bare._params, bare._distributions, bare.intermediate_values = {}, {}, {}
    rest = serialize_frozen_trial(study_id, bare, dict(study_attributes))
    del rest["params"], rest["intermediate_values"]
    reports = [
        {"step": step, "value": _number(value)}
        for step, value in sorted(trial.intermediate_values.items())
    ]
    params = ", ".join(
        _param(name, str(type(value)), value, trial.distributions[name])
        for name, value in trial.params.items()
    )
    return (
        f'{json.dumps(rest)[:-1]}, "intermediate_values": {json.dumps(reports)}, '
        f'"params": [{params}]}}'
    )


@lru_cache(maxsize=100_000)
def _param(name: str, kind: str, value: Any, distribution: BaseDistribution) -> str:
    head = json.dumps(
        {
            "name": name,
            "param_internal_value": distribution.to_internal_repr(value),
            "param_external_value": str(value),
            "param_external_pytyp": kind,
        }
    )
    return f'{head[:-1]}, "distribution": {_distribution(name, distribution)}}}'


@lru_cache(maxsize=10_000)
def _distribution(_name: str, distribution: BaseDistribution) -> str:
    """Write the distribution of one parameter.

    That of another may be equal and yet look different: to Python, choices of 0 and 1 are those of
    False and True.
    """
    return json.dumps(serialize_distribution(distribution))


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"

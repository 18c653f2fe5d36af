"""Of which candidates the ensembles of a study consist, as `ensemble.json` holds it.

Schema 2 names members as candidates; schema 1 knew none but trials, and is still read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensembles.combination import Combination
from search.paths import StudyPaths

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The members of one ensemble, and how their predictions are combined."""

    names: tuple[str, ...]
    """Of candidates, in the order of the weights."""
    combination: Combination

    def to_json(self) -> dict[str, Any]:
        """Return the selection as JSON values."""
        return {"members": list(self.names), "combination": self.combination.to_json()}


def read_selections(document: Mapping[str, Any]) -> dict[str, Selection]:
    """Return the selections of a document, by method.

    Raises:
        ValueError, KeyError, TypeError, EnsembleError: It is not of a known schema.
    """
    if document["schema"] not in (1, SCHEMA):
        raise ValueError(f"schema must be 1 or {SCHEMA}, got {document['schema']!r}")
    return {
        method: Selection(
            names=_names(values), combination=Combination.from_json(values["combination"])
        )
        for method, values in document["selections"].items()
    }


def selected_names(paths: StudyPaths) -> set[str]:
    """Return the members of the newest ensembles of a study, if there are any."""
    if not paths.ensemble.is_file():
        return set()
    try:
        selections = json.loads(paths.ensemble.read_text(encoding="utf-8"))["selections"]
        return {name for values in selections.values() for name in _names(values)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()  # a file that cannot be read cannot be exported either


def _names(values: Mapping[str, Any]) -> tuple[str, ...]:
    members = values["members"] if "members" in values else values["trial_numbers"]
    return tuple(str(member) for member in members)

"""What became of each trial whose networks were to be averaged; the soups remember it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ensembles.soup import SOUP_PREFIX
from search.paths import StudyPaths, TrialPaths, written_whole


@dataclass(frozen=True, kw_only=True)
class Soup:
    """The greedy soup of one trial, chosen on the ens role."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    trial: int
    offered: tuple[str, ...]
    """Networks of its training that could have gone in, as candidates are named."""
    ingredients: tuple[str, ...]
    """Those that did, the best one first; one: no average was better than it."""
    log_loss: float
    """Of the soup on the ens role, after a temperature of its own."""
    best_log_loss: float
    """The same of the best network alone."""

    @property
    def is_average(self) -> bool:
        """Whether it is more than one of its networks."""
        return len(self.ingredients) > 1


def soup_name(trial_number: int) -> str:
    """Return the name of a trial's soup among the candidates."""
    return f"{SOUP_PREFIX}{trial_number}"


def soup_files(paths: StudyPaths, trial_number: int) -> TrialPaths:
    """Return weights and predictions of a trial's soup."""
    return paths.soup(soup_name(trial_number))


def write_soups(paths: StudyPaths, soups: Sequence[Soup]) -> None:
    """Keep what became of each trial."""
    document = {"schema": 1, "role": "ens", "soups": [asdict(soup) for soup in soups]}
    with written_whole(paths.soups) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")


def read_soups(paths: StudyPaths) -> list[Soup]:
    """Return what became of each trial; nothing where nothing can be read: it is made anew."""
    try:
        document = json.loads(paths.soups.read_text(encoding="utf-8"))
        return _ADAPTER.validate_json(json.dumps(document["soups"]), strict=True)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return []


_ADAPTER = TypeAdapter(list[Soup])


def explain_missing_soup(soups: Sequence[Soup], *, has_snapshots: bool) -> str:
    """Say why there is no soup among the candidates.

    Args:
        soups: What became of the trials that are kept.
        has_snapshots: Whether any of them has networks to average.
    """
    if soups:
        return (
            f"soup: in none of {len(soups)} trials with snapshots was an average of weights "
            "better on the ens role than the best network alone."
        )
    if has_snapshots:
        return (
            "soup: none was made yet; `python -m search ensemble --soup` averages the snapshots "
            "of each trial."
        )
    return (
        "soup: there is nothing to average; `python -m search run --snapshots 3` keeps late "
        "rounds of each trial."
    )

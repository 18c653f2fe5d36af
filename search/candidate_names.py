"""The names of candidates: what they mean in words, and whose recipe they have.

Each kind of network that an ensemble may be built from has one row in `_FORMS`.
"""

import re
from collections.abc import Sequence

from ensembles.ordering import natural_order
from ensembles.soup import SOUP_PREFIX

_FOLD = re.compile(r"(\d+)-fold-(\d+)of(\d+)")
_FORMS = (
    (re.compile(r"(\d+)"), "trial {}"),
    (re.compile(r"(\d+)@(\d+)"), "trial {} after round {}"),
    (re.compile(r"(\d+)@raw"), "trial {} without averaging"),
    (re.compile(rf"{SOUP_PREFIX}(\d+)"), "soup of trial {}"),
    (re.compile(r"(\d+)-seed-(\d+)"), "trial {} with seed {}"),
    (_FOLD, "trial {} without fold {} of {}"),
)
"""How a name is spelled, and how its parts are told; the first part is the number of a trial."""


def candidate_title(name: str) -> str:
    """Return what people read: `42@8` is `trial 42 after round 8`; an unknown name is its own."""
    for form, words in _FORMS:
        if found := form.fullmatch(name):
            return words.format(*found.groups())
    return name


def candidate_titles(names: Sequence[str]) -> list[str]:
    """Return what people read of several; networks of one trial on all folds are told once."""
    titles = []
    for name in names:
        fold = _FOLD.fullmatch(name)
        titles.append(f"trial {fold[1]} on {fold[3]} folds" if fold else candidate_title(name))
    return list(dict.fromkeys(titles))


def seed_name(trial_number: int, seed: int) -> str:
    """Return the name of a trial's recipe, trained again; the trial itself is its seed 0."""
    return f"{trial_number}-seed-{seed}"


def fold_name(trial_number: int, fold: int, n_folds: int) -> str:
    """Return the name of a trial's recipe, trained without one of the folds."""
    return f"{trial_number}-fold-{fold}of{n_folds}"


def trial_of(name: str) -> int | None:
    """Return the number of the trial whose recipe a candidate has; None if its name has none."""
    for form, _ in _FORMS:
        if found := form.fullmatch(name):
            return int(found[1])
    return None


def by_trial(name: str) -> tuple[bool, int, tuple[tuple[str | int, ...], str]]:
    """Return a key that sorts names by their trial; those without one come last."""
    number = trial_of(name)
    return number is None, number or 0, natural_order(name)

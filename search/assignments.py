"""What one training is for, and the order of such a training.

A trial of a search learns from the train role, and its best round on the stop role is kept. A
training that is ordered afterwards may learn from other images, and its seed and its length are
told. Everything in which trainings differ, apart from their recipe, stands in an `Assignment`;
the objective reads it off the trial.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from pydantic import ConfigDict, TypeAdapter

from search.seeding import derive_seed

ATTRIBUTE = "assignment"
ORDER = "order"
EXPECTED_SECONDS = "expected_seconds"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold of several."""

    number: int
    """From 1."""
    of: int


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a student learns from its teacher."""

    teacher: str
    """Name of the teacher's bundle among the files of the nested study."""
    temperature: float
    """At which what the two say is compared."""
    share: float
    """Of the loss that the teacher decides; the labels decide the rest."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """In what a training differs from others of the same recipe."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    seed: int
    """Of everything random in the training."""
    epochs: float | None = None
    """Length of the schedule, in passes through the images that are learned from; None: a trial
    of a search, whose length the study plans."""
    fold: Fold | None = None
    """Learn from all images of train, stop and ens that are not in this fold, and predict those
    that are. There is nothing to compare rounds on, so the last one is kept."""

    lesson: Lesson | None = None
    """What is learned besides the labels, if anything."""

    @property
    def is_judged(self) -> bool:
        """Whether rounds are compared on the stop role; if not, the last one is kept."""
        return self.fold is None

    @property
    def scored_role(self) -> str:
        """Name of the images that the score of the training is computed on."""
        return "stop" if self.fold is None else "fold"


@dataclass(frozen=True, kw_only=True)
class Order:
    """One training that shall be run again with the parameters of some trial."""

    name: str
    """What a candidate is called that it makes, such as `17-seed-2`; unique in its nested study,
    and how a later run knows it again."""
    parameters: Mapping[str, Any]
    """Of the trial, as Optuna holds them."""
    assignment: Assignment
    expected_seconds: float = 0.0
    """What it will take; where less is left, it is not begun."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What its trial carries from the beginning."""
        return {
            ORDER: self.name,
            ATTRIBUTE: asdict(self.assignment),
            EXPECTED_SECONDS: self.expected_seconds,
        }


_ADAPTER = TypeAdapter(Assignment)


def assignment_of(
    user_attrs: Mapping[str, Any], *, study_seed: int, trial_number: int
) -> Assignment:
    """Return what a trial is for: as it was ordered, else as any trial of a search."""
    if ATTRIBUTE in user_attrs:
        return _ADAPTER.validate_python(user_attrs[ATTRIBUTE])
    return Assignment(seed=derive_seed(study_seed, "trial", trial_number))


def by_order(trials: Iterable[FrozenTrial]) -> dict[str, FrozenTrial]:
    """Return the trials that ended well, by the names of their orders."""
    return {order_name(trial): trial for trial in trials if trial.state == TrialState.COMPLETE}


def order_name(trial: FrozenTrial) -> str:
    """Return the name of the order that a trial carries out; empty for a trial of a search."""
    return str(trial.user_attrs.get(ORDER, ""))

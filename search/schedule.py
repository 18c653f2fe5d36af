"""How long a trial trains: in epochs, or in what its share of the time allows."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from search.config import StudyConfig

# Images that one trial sees at least, in epochs of the usual size: 24 epochs of 1,258 or of 10,000
# images, 10 of 40,000.
IMAGES_PER_TRIAL = 400_000
MIN_EPOCHS = 4
MAX_EPOCHS = 24
MAX_EPOCHS_BY_TIME = 64
ROUNDS_BY_TIME = 10
# Part of a --budget that is left for the ensemble, the report and the way there.
RESERVED_SHARE = 0.05
RESERVED_SECONDS = (8.0, 60.0)
MIN_TRIAL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long the trials of a study are; fixed when the study is made."""

    n_rounds: int
    """Reports of a trial, evenly over its schedule."""
    n_epochs: int | None
    """Epochs of a trial; None: what its seconds allow."""
    seconds: float | None
    """Seconds of a trial, where no deadline says otherwise; None: `n_epochs` counts."""


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """When the search of one `run` must be over, and what must fit in until then."""

    at: float
    """`time.monotonic()` at which running trials are ended: all processes of a machine share that
    clock, nobody can set it, and it stands still while the machine sleeps. So a budget is time
    that the machine could work."""
    n_trials: int
    n_workers: int

    def left(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self.at - time.monotonic())

    def overdue(self) -> float:
        """Return the seconds since it has passed, at least 0."""
        return max(0.0, time.monotonic() - self.at)

    def too_late(self, trials: Sequence[FrozenTrial], plan: Plan) -> bool:
        """Tell whether a trial that began now could not end.

        A trial whose length is fitted to its time needs a third of the usual; one of stated epochs
        needs what the complete ones took, in the median.
        """
        if plan.seconds is not None:
            return self.left() < max(MIN_TRIAL_SECONDS, plan.seconds / 3)
        taken = [
            float(trial.user_attrs["seconds"])
            for trial in trials
            if trial.state == TrialState.COMPLETE and "seconds" in trial.user_attrs
        ]
        return self.left() < max(MIN_TRIAL_SECONDS, statistics.median(taken) if taken else 0)

    def share(self, trials: Sequence[FrozenTrial]) -> float:
        """Return the seconds that the trial that begins now may take.

        Args:
            trials: All trials of the study, the one that begins included.

        Returns:
            Its equal part of the time of all workers; a trial that runs counts as half a trial.
        """
        n_finished = sum(
            trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials
        )
        n_running = sum(trial.state == TrialState.RUNNING for trial in trials)
        n_others = max(0, n_running - 1)
        n_to_start = max(1, self.n_trials - n_finished - n_others)
        n_slots = min(self.n_workers, n_to_start + n_others)
        return min(self.left(), self.left() * n_slots / (n_to_start + 0.5 * n_others))


def search_deadline(config: StudyConfig, *, started: float, n_workers: int) -> Deadline | None:
    """Return the deadline of the search, which leaves time for the ensemble, or None.

    Args:
        config: With the budget, if there is one.
        started: `time.monotonic()` from which the budget counts.
        n_workers: Trials that run at a time.
    """
    budget = config.budget_seconds
    if budget is None:
        return None
    low, high = RESERVED_SECONDS
    reserved = min(max(RESERVED_SHARE * budget, low), high, 0.5 * budget)
    return Deadline(at=started + budget - reserved, n_trials=config.trials, n_workers=n_workers)


def plan_trials(config: StudyConfig, *, n_train: int, n_workers: int) -> Plan:
    """Decide, once for a study, how long its trials are and how often they report.

    A trial of a stated number of epochs reports after each of them. Where `--budget` sets the
    length, trials have different numbers of epochs; they report ten times in equal parts, so that
    a pruner compares like with like.
    """
    if config.budget_seconds is not None and config.epochs is None:
        seconds = config.budget_seconds * (1 - RESERVED_SHARE) * n_workers / config.trials
        return Plan(n_rounds=ROUNDS_BY_TIME, n_epochs=None, seconds=seconds)
    usual = min(MAX_EPOCHS, max(MIN_EPOCHS, round(IMAGES_PER_TRIAL / n_train)))
    epochs = config.epochs or usual
    return Plan(n_rounds=epochs, n_epochs=epochs, seconds=None)

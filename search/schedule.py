"""How long a trial trains: in epochs, or in what its share of the time allows."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optuna.trial import FrozenTrial, TrialState

from search.assignments import EXPECTED_SECONDS
from search.config import StudyConfig
from search.rungs import Rungs, place_rungs

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
# Of the rest, part that extra trainings leave to the search at least.
MIN_SEARCH_SHARE = 0.5
FOLDED_PER_MEMBER = 2
"""Trials that are trained on folds, for each member that an ensemble may have."""
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
    rungs: Rungs | None = None
    """Where trials are looked at before their last schedule; None: they have one schedule."""

    @property
    def expected_share(self) -> float:
        """Part of a whole trial that one takes in the mean, as far as rungs end it."""
        return self.rungs.expected_share(self.n_rounds) if self.rungs else 1.0


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
        needs what the complete ones took, in the median; one that was ordered, what is expected.
        """
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        if waiting and EXPECTED_SECONDS in waiting[0].user_attrs:
            expected = float(waiting[0].user_attrs[EXPECTED_SECONDS])
            return self.left() < max(MIN_TRIAL_SECONDS, expected)
        if plan.seconds is not None:
            usual = plan.seconds * plan.expected_share
            return self.left() < max(MIN_TRIAL_SECONDS, usual / 3)
        taken = [
            float(trial.user_attrs["seconds"])
            for trial in trials
            if trial.state == TrialState.COMPLETE and "seconds" in trial.user_attrs
        ]
        return self.left() < max(MIN_TRIAL_SECONDS, statistics.median(taken) if taken else 0)

    def share(self, trials: Sequence[FrozenTrial], *, expected_share: float = 1.0) -> float:
        """Return the seconds that the trial that begins now may take.

        Args:
            trials: All trials of the study, the one that begins included.
            expected_share: Part of a whole trial that one takes in the mean.

        Returns:
            What a whole trial takes if the mean one takes its equal part of the time of all
            workers; a trial that runs counts as half a trial. Where few trials are left, and
            chance may let all of them pass, it is less: half way between its part and all.
        """
        n_finished = sum(
            trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials
        )
        n_running = sum(trial.state == TrialState.RUNNING for trial in trials)
        n_others = max(0, n_running - 1)
        n_to_start = max(1, self.n_trials - n_finished - n_others)
        n_slots = min(self.n_workers, n_to_start + n_others)
        left = self.left()
        part = min(left, left * n_slots / (n_to_start + 0.5 * n_others))
        return min(part / expected_share, (part + left) / 2)


def search_deadline(config: StudyConfig, *, started: float, n_workers: int) -> Deadline | None:
    """Return the deadline of the search, which leaves time for the ensemble, or None.

    Args:
        config: With the budget, if there is one.
        started: `time.monotonic()` from which the budget counts.
        n_workers: Trials that run at a time.
    """
    end = training_end(config, started=started)
    if end is None:
        return None
    at = started + (end - started) * _search_share(config)
    return Deadline(at=at, n_trials=config.trials, n_workers=n_workers)


def training_end(config: StudyConfig, *, started: float) -> float | None:
    """Return when all training must be over, that of seeds and folds too, or None."""
    budget = config.budget_seconds
    if budget is None:
        return None
    low, high = RESERVED_SECONDS
    return started + budget - min(max(RESERVED_SHARE * budget, low), high, 0.5 * budget)


def _search_share(config: StudyConfig) -> float:
    """Return the part of the training time that the search gets: a training counts as a trial."""
    n_extra = (config.seeds or 1) - 1
    if config.folds is not None:
        n_extra = config.folds * FOLDED_PER_MEMBER * config.max_members
    return max(MIN_SEARCH_SHARE, config.trials / (config.trials + n_extra))


def plan_trials(config: StudyConfig, *, n_train: int, n_workers: int) -> Plan:
    """Decide, once for a study, how long its trials are and how often they report.

    A trial of a stated number of epochs reports after each of them. Where `--budget` sets the
    length, trials have different numbers of epochs; they report ten times in equal parts, so that
    a pruner compares like with like. Where rungs end most trials, the whole ones are longer. With
    `--trial-budget` each whole trial has that time.
    """
    if (stated := config.trial_budget_seconds) is not None:
        rungs = _rungs(config, ROUNDS_BY_TIME)
        return Plan(n_rounds=ROUNDS_BY_TIME, n_epochs=None, seconds=stated, rungs=rungs)
    if config.budget_seconds is not None and config.epochs is None:
        seconds = config.budget_seconds * (1 - RESERVED_SHARE) * _search_share(config)
        seconds *= n_workers / config.trials
        rungs = _rungs(config, ROUNDS_BY_TIME)
        plan = Plan(n_rounds=ROUNDS_BY_TIME, n_epochs=None, seconds=seconds, rungs=rungs)
        return replace(plan, seconds=seconds / plan.expected_share)
    usual = min(MAX_EPOCHS, max(MIN_EPOCHS, round(IMAGES_PER_TRIAL / n_train)))
    epochs = config.epochs or usual
    return Plan(n_rounds=epochs, n_epochs=epochs, seconds=None, rungs=_rungs(config, epochs))


def _rungs(config: StudyConfig, n_rounds: int) -> Rungs | None:
    if config.pruner != "rungs":
        return None
    return place_rungs(n_rounds, n_rungs=config.rungs, eta=config.eta)

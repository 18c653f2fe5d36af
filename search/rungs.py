"""Rungs: complete short schedules as looks at a configuration, and who goes on after each.

Asynchronous successive halving (Li et al. 2020, "A system for massively parallel hyperparameter
tuning"), in its form without pausing: a trial goes on if it is among the best `1 / eta` of all
that have reached the rung so far, else it ends there. What differs is what a rung is: not a cut
through one long schedule, where the learning rate is at its peak and ranks misleadingly, but the
end of a schedule of its own.

A trial that passes goes on from the rung's weights, its learning rate warmed up again, so nothing
is trained twice. The other way, a constant rate from which each look branches off with a decay of
its own (the schedule `wsd`), ranks as well and ends as low at equal steps, as measured by
benchmarks/ranking.py; but its checkpoints would hold two states, and an average of weights that
depends on the length of the schedule could not go on.
"""

import itertools
import math
import statistics
from dataclasses import dataclass

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """Where the trials of a study are looked at before their last schedule."""

    rounds: tuple[int, ...]
    """Rounds that end a complete schedule, rising; the last round of a trial is none of them."""
    eta: int
    """At each rung one of so many trials goes on."""

    def expected_share(self, n_rounds: int) -> float:
        """Return the part of a whole trial that one takes in the mean.

        Args:
            n_rounds: Rounds of a whole trial.
        """
        ends = (0, *self.rounds, n_rounds)
        taken = [
            (end - begin) / math.pow(self.eta, number)
            for number, (begin, end) in enumerate(itertools.pairwise(ends))
        ]
        return sum(taken) / n_rounds


def place_rungs(n_rounds: int, *, n_rungs: int, eta: int) -> Rungs | None:
    """Return the rungs of trials of `n_rounds` rounds, each `eta` times as far as the one before.

    None where a trial has too few rounds for any.

    >>> place_rungs(24, n_rungs=2, eta=2)
    Rungs(rounds=(6, 12), eta=2)
    """
    places = {math.ceil(n_rounds / eta**power) for power in range(1, n_rungs + 1)}
    rounds = tuple(sorted(place for place in places if place < n_rounds))
    return Rungs(rounds=rounds, eta=eta) if rounds else None


class RungPruner(BasePruner):
    """Ends a trial at a rung it does not pass, or late in its last schedule.

    Late means from the middle of the last schedule on, where a running score ranks as the final
    one does: a trial ends if it is worse there than half of the complete ones were at the same
    round. Optuna's median would compare with the best round of the trial, which is a rung, where
    the learning rate was low; so a score is compared with scores of its own round alone.
    """

    def __init__(self, rungs: Rungs, *, n_rounds: int, n_startup_trials: int) -> None:
        last = rungs.rounds[-1]
        self._rungs = rungs
        self._late_from = last + math.ceil((n_rounds - last) / 2)
        self._n_startup_trials = n_startup_trials

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether the trial ends after its newest report."""
        step = trial.last_step or 0
        if step in self._rungs.rounds:
            seen = [_cost(other, step, study) for other in _at(step, study)]
            n_better = sum(cost < _cost(trial, step, study) for cost in seen)
            return n_better >= math.ceil(len(seen) / self._rungs.eta)
        if step < self._late_from:
            return False
        complete = [
            _cost(other, step, study)
            for other in _at(step, study)
            if other.state == TrialState.COMPLETE
        ]
        return len(complete) >= self._n_startup_trials and (
            _cost(trial, step, study) > statistics.median(complete)
        )


def _at(step: int, study: Study) -> list[FrozenTrial]:
    """Return all trials that have reported at a round, in whatever state they are."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if step in trial.intermediate_values]


def _cost(trial: FrozenTrial, step: int, study: Study) -> float:
    """Return what a trial reported at a round, such that less is better."""
    value = trial.intermediate_values[step]
    return -value if study.direction == StudyDirection.MAXIMIZE else value

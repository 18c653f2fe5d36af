"""Running trials whose process is gone: found by proof, handed back to the queue.

A process of this host is proved to be gone by `/proc`. One of another host gives a sign of life
every 15 seconds; when its last one has not changed for 120 s, it is taken for gone. Clocks are not
compared: what counts is how long the watch itself has looked at the same sign, and a pause of the
watch (a suspended machine, a server that did not answer) counts as one look at the most.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.owners import ATTRIBUTE, is_owned, owner_of
from search.storage import alone, backend_of, hand_back

logger = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
STALE_SECONDS = 120.0


@dataclass
class _Sign:
    """The last sign of life of a trial's process, as this watch has seen it."""

    text: str
    seconds: float = 0.0
    """Looked at since it last changed."""
    has_changed: bool = False


@dataclass
class OrphanWatch:
    """Watches the running trials of one study."""

    study: optuna.Study
    clock: Callable[[], float] = time.monotonic
    _signs: dict[int, _Sign] = field(default_factory=dict, init=False)
    _looked_at: float = field(default=-BEAT_SECONDS, init=False)

    def is_time_to_look(self) -> bool:
        """Tell whether the last look is long ago; for loops that turn quickly."""
        return self.clock() - self._looked_at >= BEAT_SECONDS

    def hand_back(self, *, suspect: bool) -> list[int]:
        """Hand back every running trial whose process is gone.

        A trial gets its owner under the same lock under which it is begun; so one without an
        owner is an orphan.

        Args:
            suspect: Whether the trials themselves may have ended their processes.

        Returns:
            The numbers of the trials.
        """
        with alone(self.study):
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            self._look_at(running)
            orphans = [trial for trial in running if self._is_orphan(trial)]
            for trial in orphans:
                hand_back(self.study, trial, suspect=suspect)
        for trial in orphans:
            owner = owner_of(trial.user_attrs)
            where = f"process {owner.pid} on {owner.host}" if owner else "its process"
            logger.warning("trial %d: %s is gone; handed back", trial.number, where)
        return [trial.number for trial in orphans]

    def n_doubtful(self, trials: Sequence[FrozenTrial]) -> int:
        """Count the running trials of which it is not known whether their process lives."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        return sum(not self._is_alive(trial) for trial in running)

    def _look_at(self, running: Sequence[FrozenTrial]) -> None:
        now = self.clock()
        passed = min(now - self._looked_at, BEAT_SECONDS)
        self._looked_at = now
        beats = backend_of(self.study).heartbeats(self.study._study_id)
        signs: dict[int, _Sign] = {}
        for trial in running:
            text = f"{beats.get(trial._trial_id)} {trial.user_attrs.get(ATTRIBUTE)}"
            before = self._signs.get(trial._trial_id)
            if before and before.text == text:
                before.seconds += passed
                signs[trial._trial_id] = before
            else:
                signs[trial._trial_id] = _Sign(text, has_changed=before is not None)
        self._signs = signs

    def _is_orphan(self, trial: FrozenTrial) -> bool:
        if not is_owned(trial.user_attrs):
            return True
        owner = owner_of(trial.user_attrs)
        if owner and owner.is_here:
            return owner.is_gone()
        return self._signs[trial._trial_id].seconds >= STALE_SECONDS

    def _is_alive(self, trial: FrozenTrial) -> bool:
        owner = owner_of(trial.user_attrs)
        if owner and owner.is_here:
            return not owner.is_gone()
        sign = self._signs.get(trial._trial_id)
        return sign is not None and sign.has_changed

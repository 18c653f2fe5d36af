"""Trials as rows for people and programs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.devices import MemoryUse

GPU_BYTES = "gpu_bytes"
"""Attribute of a trial: the most memory that it took of its GPU, and what there is in all."""
OUT_OF_TIME = "out of time"
"""Ending of a trial that was ended by its own time, or by that of the search."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """What people ask of one trial."""

    number: int
    state: str
    value: float | None
    """Objective of the best round; of a pruned trial, the last one it reported."""
    log_loss: float | None
    """Of the best round on the stop role, in nats."""
    accuracy: float | None
    epochs: float | None
    rounds: int
    """Reports so far."""
    seconds: float | None
    parameters: int | None
    """Weights of the network."""
    slot: int | None
    ending: str
    """Why it ended early or failed; empty if it did not."""
    params: dict[str, Any]
    """What the sampler chose."""


def trial_row(trial: FrozenTrial) -> TrialRow:
    """Return one trial as a row."""
    attributes = trial.user_attrs
    return TrialRow(
        number=trial.number,
        state=trial.state.name.lower(),
        value=trial.value,
        log_loss=attributes.get("log_loss"),
        accuracy=attributes.get("accuracy"),
        epochs=attributes.get("epochs"),
        rounds=len(trial.intermediate_values),
        seconds=attributes.get("seconds"),
        parameters=attributes.get("parameters"),
        slot=attributes.get("slot"),
        ending=attributes.get("ending") or attributes.get("failure", ""),
        params=trial.params,
    )


def ranked(trials: Sequence[FrozenTrial], *, rises: bool) -> list[FrozenTrial]:
    """Return the complete trials, best objective first, the earlier one where two are equal."""
    complete = [
        trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None
    ]
    sign = -1 if rises else 1
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


@dataclass(frozen=True, kw_only=True)
class TrialCounts:
    """How many trials are in which state."""

    complete: int
    pruned: int
    running: int
    waiting: int
    failed: int

    @property
    def finished(self) -> int:
        """Trials that are complete or pruned."""
        return self.complete + self.pruned


def count_trials(trials: Sequence[FrozenTrial]) -> TrialCounts:
    """Count trials by state."""
    return name_counts(Counter(trial.state for trial in trials))


def name_counts(counts: Counter[TrialState]) -> TrialCounts:
    """Return counts by Optuna's states as counts with names of ours."""
    return TrialCounts(
        complete=counts[TrialState.COMPLETE],
        pruned=counts[TrialState.PRUNED],
        running=counts[TrialState.RUNNING],
        waiting=counts[TrialState.WAITING],
        failed=counts[TrialState.FAIL],
    )


def seconds_left(
    trials: Sequence[FrozenTrial], n_trials: int, seconds: float, done_before: int
) -> float | None:
    """Estimate the seconds until `n_trials` are finished, from the pace of this run.

    Args:
        trials: All trials of the study.
        n_trials: How many there shall be.
        seconds: Since the run began.
        done_before: Finished trials when it began.

    Returns:
        Seconds, or None while no trial of this run is finished.
    """
    n_finished = sum(trial.state in FINISHED for trial in trials)
    n_now = n_finished - done_before
    return seconds / n_now * max(0, n_trials - n_finished) if n_now > 0 else None


def measured_memory(trials: Sequence[FrozenTrial]) -> dict[int, MemoryUse]:
    """Return what the hungriest trial of each slot took of its GPU, by the slot's number."""
    found: dict[int, MemoryUse] = {}
    for trial in trials:
        if trial.state in FINISHED and GPU_BYTES in trial.user_attrs:
            peak, total = trial.user_attrs[GPU_BYTES]
            slot = trial.user_attrs["slot"]
            if slot not in found or peak > found[slot].peak_bytes:
                found[slot] = MemoryUse(peak_bytes=peak, total_bytes=total)
    return found

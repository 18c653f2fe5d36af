"""The rounds of one trial: trained, judged, reported and saved, within its time and its memory."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import optuna

from search.assignments import Assignment
from search.checkpoints import Checkpoint, Saver, load_checkpoint
from search.clock import working_seconds
from search.errors import in_one_line
from search.judging import is_better, score
from search.length import plan_steps
from search.memory import free_memory, is_out_of_memory
from search.schedule import Deadline
from search.snapshots import RAW, Weights, copy_weights, snapshot_rounds
from search.training import Diverged, Interrupted, Round, train
from search.workplace import Workplace
from spaces.recipe import Recipe

logger = logging.getLogger(__name__)

# A trial whose length was fitted to its seconds may be this much slower than it was timed.
TOLERANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class TrialTime:
    """What time a trial has."""

    seconds: float | None
    """What its schedule shall be fitted to; None where its epochs are stated."""
    deadline: Deadline | None
    """When the whole search must be over."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a trial shall train."""

    recipe: Recipe
    assignment: Assignment
    time_given: TrialTime


class OutOfTimeError(Exception):
    """The trial has used up its time."""


@dataclass
class Progress:
    """The rounds of a trial so far, and the best of them."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_round: int = 0
    best_weights: Weights = field(default_factory=dict)
    snapshots: dict[str, Weights] = field(default_factory=dict)
    """By round, and those of the best round without averaging."""
    began: float = field(default_factory=working_seconds)
    """When the trial would have begun, had it never been interrupted nor stopped."""
    ending: str = ""
    """Why the trial ended before its last round; empty if it did not."""

    def go_back_to(self, saved: Checkpoint | None) -> None:
        """Forget all rounds but those that were saved."""
        self.history[:] = saved.history if saved else []
        self.best_round = saved.best_round if saved else 0
        self.best_weights = saved.best_weights if saved else {}
        self.snapshots = dict(saved.snapshots) if saved else {}


def run_rounds(
    trial: optuna.Trial, job: Job, place: Workplace, progress: Progress
) -> Iterator[Round]:
    """Train, judge, report and save each round, from the checkpoint on if there is one.

    Where a batch does not fit into the memory, the trial goes back to its checkpoint, or to its
    beginning, and goes on with batches in parts of half the size, until they fit.

    Args:
        trial: A running trial.
        job: What it chose, what it is for, and how long it may take.
        place: Images, roles, device and memory.
        progress: Takes up the rounds.

    Yields:
        Each round after it was reported.

    Raises:
        Diverged: A loss, a weight or a prediction is not finite.
        DoesNotFitError: The network does not fit into the memory.
        Interrupted: The worker is stopping; the newest checkpoint is on the disk.
        OutOfTimeError: The trial's time is up, or that of the search.
    """
    paths, device = place.paths.trial(trial.number), place.images.device
    saved = load_checkpoint(paths, device)
    if saved is not None:
        progress.began -= saved.seconds
        # A checkpoint of a GPU may go on where memory is less.
        place.portions.n_parts = max(saved.n_parts, place.portions.n_parts)
        place.portions.n_predicted = saved.n_predicted
        logger.info("trial %d: goes on after round %d", trial.number, len(saved.history))
    out_of_time = _watch_time(place, progress, job.time_given)
    batch_size = min(job.recipe.optimizer.batch_size, len(place.images.rows))
    while True:
        progress.go_back_to(saved)
        n_steps = saved.n_steps if saved else None
        try:
            n_steps = n_steps or plan_steps(
                job.recipe,
                place,
                job.time_given.seconds,
                epochs=job.assignment.epochs,
                seed=trial.number,
            )
            yield from _report(
                *(trial, job, place, progress, n_steps),
                _train(job, place, out_of_time, n_steps, saved),
            )
        except Exception as error:  # raised again, unless it is one that smaller batches help
            if not is_out_of_memory(error):
                raise
            reason = in_one_line(error)
        else:
            return
        # Out here the traceback is gone, and with it all tensors of the step that failed.
        free_memory(device)
        place.portions.shrink(batch_size, reason)
        logger.warning(
            "trial %d: %s; goes on with %d images at a time",
            *(trial.number, reason, place.portions.micro_batch(batch_size)),
        )
        saved = load_checkpoint(paths, device)


def _report(
    trial: optuna.Trial,
    job: Job,
    place: Workplace,
    progress: Progress,
    n_steps: int,
    rounds: Iterator[Round],
) -> Iterator[Round]:
    """Judge, report and save each round; one that was reported before an interruption is not."""
    n_reported = len(trial.storage.get_trial(trial._trial_id).intermediate_values)
    saver = Saver(place.paths.trial(trial.number))
    for finished in rounds:
        _judge(finished, job, place, progress)
        if finished.number > n_reported:
            trial.report(value_of(progress.history[-1], place), finished.number)
        place.panel.end_round()
        yield finished
        if _has_stalled(progress, place):
            trial.set_user_attr("ending", f"stopped after round {finished.number}: no better")
            return
        # Only now: a trial that is killed before it is decided whether it goes on is asked again.
        if saver.is_due():
            saver.save(
                Checkpoint(
                    n_steps=n_steps,
                    training=finished.state(),
                    history=progress.history,
                    best_round=progress.best_round,
                    best_weights=progress.best_weights,
                    snapshots=progress.snapshots,
                    seconds=working_seconds() - progress.began,
                    n_parts=place.portions.n_parts,
                    n_predicted=place.portions.n_predicted,
                )
            )


def _has_stalled(progress: Progress, place: Workplace) -> bool:
    """Tell whether a trial has waited long enough for a better round; complete, as it is.

    Not before half of its last schedule: at its peak the learning rate hides what was learned.
    """
    plan, n_rounds = place.record.plan, len(progress.history)
    began = plan.rungs.rounds[-1] if plan.rungs else 0
    patience = place.record.config.patience
    late = plan.n_rounds - began <= 2 * (n_rounds - began) < 2 * (plan.n_rounds - began)
    return patience is not None and late and n_rounds - progress.best_round >= patience


def _watch_time(place: Workplace, progress: Progress, time_given: TrialTime) -> Callable[[], bool]:
    """Return whether a trial is out of time; its timeout counts the time before interruptions."""
    timeout = place.record.config.trial_timeout_seconds or np.inf
    fitted = TOLERANCE * time_given.seconds if time_given.seconds else np.inf
    ends_at = min(progress.began + timeout, working_seconds() + fitted)
    deadline = time_given.deadline
    return lambda: working_seconds() > ends_at or (deadline is not None and deadline.left() == 0)


def _train(
    job: Job,
    place: Workplace,
    out_of_time: Callable[[], bool],
    n_steps: int,
    saved: Checkpoint | None,
) -> Iterator[Round]:
    """Train to the end of the schedule, of the trial's time, or of the worker."""
    rungs = place.record.plan.rungs
    try:
        yield from train(
            job.recipe,
            place.record.task,
            place.images,
            n_steps=n_steps,
            n_rounds=place.record.plan.n_rounds,
            seed=job.assignment.seed,
            autocast_dtype=place.autocast_dtype,
            rungs=rungs.rounds if rungs else (),
            n_parts=place.portions.n_parts,
            resume=saved.training if saved else None,
            interrupted=lambda: place.stopping() or out_of_time(),
        )
    except Interrupted:
        if place.stopping() or place.record.ordered:  # what was ordered goes on another time
            raise
        raise OutOfTimeError from None


def _judge(finished: Round, job: Job, place: Workplace, progress: Progress) -> None:
    """Score the network, and remember it if it is the best so far, or the last that counts.

    On a fold the score is only shown: it decides nothing.
    """
    rows = place.round_rows
    predicted = place.predict(finished.network, rows, dtype=place.autocast_dtype)
    if not np.isfinite(predicted).all():
        raise Diverged(f"predictions of round {finished.number} are not finite")
    progress.history.append(
        {
            "round": finished.number,
            "train_loss": finished.train_loss,
            "images_seen": finished.images_seen,
            "seconds": round(finished.seconds, 3),
            **score(predicted, place.labels(rows)),
        }
    )
    value = value_of(progress.history[-1], place)
    best = progress.history[progress.best_round - 1] if progress.best_round else None
    metric, n_snapshots = place.record.config.metric, place.record.config.snapshots
    is_judged = job.assignment.is_judged
    if best is None or not is_judged or is_better(metric, value, than=value_of(best, place)):
        progress.best_round = len(progress.history)
        progress.best_weights = copy_weights(finished.network)
        if n_snapshots and finished.unaveraged is not None:
            progress.snapshots[RAW] = copy_weights(finished.unaveraged)
    if finished.number in snapshot_rounds(place.record.plan.n_rounds, n_snapshots):
        progress.snapshots[str(finished.number)] = copy_weights(finished.network)


def value_of(scores: dict[str, float], place: Workplace) -> float:
    """Return the score that the study optimizes."""
    return scores[place.record.config.metric]

"""One trial: suggest, build, train, predict, keep, score."""

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

from search.assignments import Assignment, assignment_of
from search.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from search.exhibits import exhibit_trial
from search.judging import is_better, score
from search.length import plan_steps
from search.paths import TrialPaths
from search.predictions import write_history, write_network
from search.schedule import Deadline
from search.snapshots import RAW, Weights, copy_weights, differing, snapshot_rounds
from search.training import (
    Diverged,
    Interrupted,
    Round,
    train,
)
from search.workplace import Workplace
from spaces.recipe import Recipe
from spaces.space import suggest_recipe

logger = logging.getLogger(__name__)

# A trial whose length was fitted to its seconds may be this much slower than it was timed.
TOLERANCE = 2.0
_OUT_OF_TIME = "out of time"
# A checkpoint costs some 10 ms: too much after each round of a trial that lasts 2 s.
SECONDS_BETWEEN_CHECKPOINTS = 5.0


@dataclass(frozen=True, kw_only=True)
class TrialTime:
    """What time a trial has."""

    seconds: float | None
    """What its schedule shall be fitted to; None where its epochs are stated."""
    deadline: Deadline | None
    """When the whole search must be over."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    state: TrialState
    value: float | None
    """Objective of the best round; None for a trial that is not complete."""


@dataclass
class _Progress:
    """The rounds of a trial so far, and the best of them."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_round: int = 0
    best_weights: Weights = field(default_factory=dict)
    snapshots: dict[str, Weights] = field(default_factory=dict)
    """By round, and those of the best round without averaging."""
    began: float = field(default_factory=time.monotonic)
    """When the trial would have begun, had it never been interrupted."""
    ending: str = ""
    """Why the trial ended before its last round; empty if it did not."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a trial shall train."""

    recipe: Recipe
    assignment: Assignment
    time_given: TrialTime


class _OutOfTimeError(Exception):
    """The trial has used up its time."""


def run_trial(trial: optuna.Trial, place: Workplace, time_given: TrialTime) -> Outcome:
    """Run one trial to its end.

    Args:
        trial: A running trial; one that was interrupted goes on from its checkpoint.
        place: Images, roles and device.
        time_given: How long it may take.

    Returns:
        Its state and objective. Predictions and weights of its best round are on the disk.

    Raises:
        Interrupted: The worker is stopping; the newest checkpoint is on the disk.
    """
    recipe = suggest_recipe(trial, place.record.space, place.record.task)
    trial.set_user_attr("recipe", recipe.to_json())
    trial.set_user_attr("slot", place.slot)
    assignment = assignment_of(
        trial.user_attrs, study_seed=place.record.config.seed, trial_number=trial.number
    )
    place = place.assigned(assignment)
    job = _Job(recipe=recipe, assignment=assignment, time_given=time_given)
    progress = _Progress()
    try:
        for finished in _rounds(trial, job, place, progress):
            if finished.number < place.record.plan.n_rounds and trial.should_prune():
                progress.ending = f"pruned after round {finished.number}"
                break
    except Diverged as error:
        progress.ending = f"diverged: {error}"
    except _OutOfTimeError:
        progress.ending = _OUT_OF_TIME
    except (torch.OutOfMemoryError, MemoryError) as error:
        progress.ending = f"out of memory: {(str(error) or 'host').splitlines()[0]}"
    outcome = _keep(trial, job, place, progress)
    trial.set_user_attr("seconds", round(time.monotonic() - progress.began, 2))
    return outcome


def _rounds(
    trial: optuna.Trial, job: _Job, place: Workplace, progress: _Progress
) -> Iterator[Round]:
    """Train, judge, report and save each round, from the checkpoint on if there is one."""
    paths = place.paths.trial(trial.number)
    saved = load_checkpoint(paths, place.images.device)
    if saved is not None:
        progress.history[:] = saved.history
        progress.best_round, progress.best_weights = saved.best_round, saved.best_weights
        progress.snapshots.update(saved.snapshots)
        progress.began -= saved.seconds
    n_steps = (
        saved.n_steps
        if saved
        else plan_steps(
            job.recipe,
            place,
            job.time_given.seconds,
            epochs=job.assignment.epochs,
            seed=trial.number,
        )
    )
    n_reported = len(trial.storage.get_trial(trial._trial_id).intermediate_values)
    saved_at = time.monotonic()
    for finished in _train(job, place, n_steps, saved):
        _judge(finished, job, place, progress)
        if finished.number > n_reported:
            trial.report(_value(progress.history[-1], place), finished.number)
        yield finished
        if _has_stalled(progress, place):
            trial.set_user_attr("ending", f"stopped after round {finished.number}: no better")
            return
        # Only now: a trial that is killed before it is decided whether it goes on is asked again.
        if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            save_checkpoint(
                paths,
                Checkpoint(
                    n_steps=n_steps,
                    training=finished.state(),
                    history=progress.history,
                    best_round=progress.best_round,
                    best_weights=progress.best_weights,
                    snapshots=progress.snapshots,
                    seconds=time.monotonic() - progress.began,
                ),
            )
            saved_at = time.monotonic()


def _has_stalled(progress: _Progress, place: Workplace) -> bool:
    """Tell whether a trial has waited long enough for a better round; complete, as it is.

    Not before half of its last schedule: at its peak the learning rate hides what was learned.
    """
    plan, n_rounds = place.record.plan, len(progress.history)
    began = plan.rungs.rounds[-1] if plan.rungs else 0
    patience = place.record.config.patience
    late = plan.n_rounds - began <= 2 * (n_rounds - began) < 2 * (plan.n_rounds - began)
    return patience is not None and late and n_rounds - progress.best_round >= patience


def _train(job: _Job, place: Workplace, n_steps: int, saved: Checkpoint | None) -> Iterator[Round]:
    """Train to the end of the schedule, of the trial's time, or of the worker."""
    timeout = place.record.config.trial_timeout_seconds or np.inf
    seconds, deadline = job.time_given.seconds, job.time_given.deadline
    ends_at = time.monotonic() + min(timeout, TOLERANCE * seconds if seconds else np.inf)
    rungs = place.record.plan.rungs

    def out_of_time() -> bool:
        return time.monotonic() > ends_at or (deadline is not None and deadline.left() == 0)

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
            resume=saved.training if saved else None,
            interrupted=lambda: place.stopping() or out_of_time(),
        )
    except Interrupted:
        if place.stopping() or place.record.ordered:  # what was ordered goes on another time
            raise
        raise _OutOfTimeError from None


def _judge(finished: Round, job: _Job, place: Workplace, progress: _Progress) -> None:
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
    value = _value(progress.history[-1], place)
    best = progress.history[progress.best_round - 1] if progress.best_round else None
    metric, n_snapshots = place.record.config.metric, place.record.config.snapshots
    is_judged = job.assignment.is_judged
    if best is None or not is_judged or is_better(metric, value, than=_value(best, place)):
        progress.best_round = len(progress.history)
        progress.best_weights = copy_weights(finished.network)
        if n_snapshots and finished.unaveraged is not None:
            progress.snapshots[RAW] = copy_weights(finished.unaveraged)
    if finished.number in snapshot_rounds(place.record.plan.n_rounds, n_snapshots):
        progress.snapshots[str(finished.number)] = copy_weights(finished.network)


def _value(scores: dict[str, float], place: Workplace) -> float:
    return scores[place.record.config.metric]


def _keep(trial: optuna.Trial, job: _Job, place: Workplace, progress: _Progress) -> Outcome:
    """Write what the best round predicts, and what the dashboard sorts by."""
    if progress.ending:
        trial.set_user_attr("ending", progress.ending)
    if not progress.best_round:
        return Outcome(state=TrialState.PRUNED, value=None)
    paths = place.paths.trial(trial.number)
    network = place.load_network(job.recipe, progress.best_weights)
    began = time.perf_counter()
    kept = place.predict_roles(network)
    per_image = (time.perf_counter() - began) / sum(len(rows) for rows in place.rows.values())
    write_network(paths, progress.best_weights, kept)
    write_history(paths, progress.history)
    _keep_snapshots(paths, job.recipe, place, progress)
    scored = job.assignment.scored_role
    best = score(kept[scored], place.labels(place.rows[scored]))
    attributes = {
        "accuracy": round(best["accuracy"], 6),
        "log_loss": round(best["log_loss"], 6),
        "best_round": progress.best_round,
        "epochs": round(progress.history[-1]["images_seen"] / len(place.images.rows), 2),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "milliseconds": round(1000 * per_image, 5),
    }
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    if progress.ending:
        return Outcome(state=TrialState.PRUNED, value=None)
    if not place.record.ordered:  # nobody looks at them there
        exhibit_trial(
            trial,
            place.paths,
            stop_labels=place.labels(place.rows["stop"]),
            class_names=place.record.class_names,
            best_round=progress.best_round,
        )
    return Outcome(state=TrialState.COMPLETE, value=_value(best, place))


def _keep_snapshots(
    paths: TrialPaths, recipe: Recipe, place: Workplace, progress: _Progress
) -> None:
    """Write the other networks of a trial, in the place of any that a lost attempt left."""
    if paths.snapshots.is_dir():
        shutil.rmtree(paths.snapshots)
    if progress.ending == _OUT_OF_TIME:
        return
    for name, weights in differing(progress.snapshots, progress.best_weights).items():
        predicted = place.predict_roles(place.load_network(recipe, weights))
        # No round was judged by weights without averaging: they may have run away.
        if all(np.isfinite(each).all() for each in predicted.values()):
            write_network(paths.snapshot(name), weights, predicted)

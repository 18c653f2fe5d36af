"""One trial: suggest, build, train, predict, keep, score."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import optuna
import torch
from optuna.trial import TrialState
from torch import Tensor

from search.checkpoints import Checkpoint, Saver, load_checkpoint
from search.clock import working_seconds
from search.exhibits import exhibit_trial
from search.judging import is_better, score
from search.length import plan_steps
from search.predictions import write_history, write_predictions, write_weights
from search.schedule import Deadline
from search.seeding import derive_seed
from search.training import (
    Diverged,
    Interrupted,
    Round,
    train,
)
from search.workplace import Workplace
from spaces.networks.builders import build_network
from spaces.recipe import Recipe
from spaces.space import suggest_recipe

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
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    began: float = field(default_factory=working_seconds)
    """When the trial would have begun, had it never been interrupted nor stopped."""
    ending: str = ""
    """Why the trial ended before its last round; empty if it did not."""


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
    trial.set_user_attr("slot", place.slot)
    recipe = suggest_recipe(trial, place.record.space, place.record.task)
    trial.set_user_attr("recipe", recipe.to_json())
    progress = _Progress()
    try:
        for finished in _rounds(trial, recipe, place, progress, time_given):
            if finished.number < place.record.plan.n_rounds and trial.should_prune():
                progress.ending = f"pruned after round {finished.number}"
                break
    except Diverged as error:
        progress.ending = f"diverged: {error}"
    except _OutOfTimeError:
        progress.ending = "out of time"
    except (torch.OutOfMemoryError, MemoryError) as error:
        progress.ending = f"out of memory: {(str(error) or 'host').splitlines()[0]}"
    outcome = _keep(trial, recipe, place, progress)
    trial.set_user_attr("seconds", round(working_seconds() - progress.began, 2))
    return outcome


def _rounds(
    trial: optuna.Trial,
    recipe: Recipe,
    place: Workplace,
    progress: _Progress,
    time_given: TrialTime,
) -> Iterator[Round]:
    """Train, judge, report and save each round, from the checkpoint on if there is one."""
    paths = place.paths.trial(trial.number)
    saved = load_checkpoint(paths, place.images.images.device)
    if saved is not None:
        progress.history[:] = saved.history
        progress.best_round, progress.best_weights = saved.best_round, saved.best_weights
        progress.began -= saved.seconds
        logger.info("trial %d: goes on after round %d", trial.number, len(saved.history))
    n_steps = (
        saved.n_steps
        if saved
        else plan_steps(recipe, place, time_given.seconds, seed=trial.number)
    )
    n_reported = len(trial.storage.get_trial(trial._trial_id).intermediate_values)
    saver = Saver(paths)
    out_of_time = _watch_time(place, progress, time_given)
    for finished in _train(trial, recipe, place, out_of_time, n_steps, saved):
        _judge(finished, place, progress)
        if saver.is_due():
            saver.save(
                Checkpoint(
                    n_steps=n_steps,
                    training=finished.state(),
                    history=progress.history,
                    best_round=progress.best_round,
                    best_weights=progress.best_weights,
                    seconds=working_seconds() - progress.began,
                )
            )
        if finished.number > n_reported:
            trial.report(_value(progress.history[-1], place), finished.number)
        place.panel.end_round()
        yield finished


def _watch_time(
    place: Workplace, progress: _Progress, time_given: TrialTime
) -> Callable[[], bool]:
    """Return whether a trial is out of time; its timeout counts the time before interruptions."""
    timeout = place.record.config.trial_timeout_seconds or np.inf
    fitted = TOLERANCE * time_given.seconds if time_given.seconds else np.inf
    ends_at = min(progress.began + timeout, working_seconds() + fitted)
    deadline = time_given.deadline
    return lambda: working_seconds() > ends_at or (deadline is not None and deadline.left() == 0)


def _train(
    trial: optuna.Trial,
    recipe: Recipe,
    place: Workplace,
    out_of_time: Callable[[], bool],
    n_steps: int,
    saved: Checkpoint | None,
) -> Iterator[Round]:
    """Train to the end of the schedule, of the trial's time, or of the worker."""
    try:
        yield from train(
            recipe,
            place.record.task,
            place.images,
            n_steps=n_steps,
            n_rounds=place.record.plan.n_rounds,
            seed=derive_seed(place.record.config.seed, "trial", trial.number),
            autocast_dtype=place.autocast_dtype,
            resume=saved.training if saved else None,
            interrupted=lambda: place.stopping() or out_of_time(),
        )
    except Interrupted:
        if place.stopping():
            raise
        raise _OutOfTimeError from None


def _judge(finished: Round, place: Workplace, progress: _Progress) -> None:
    """Score the network on the stop role, and remember it if it is the best so far."""
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
    metric = place.record.config.metric
    if best is None or is_better(metric, value, than=_value(best, place)):
        progress.best_round = len(progress.history)
        state = finished.network.state_dict()
        progress.best_weights = {name: tensor.detach().clone() for name, tensor in state.items()}


def _value(scores: dict[str, float], place: Workplace) -> float:
    return scores[place.record.config.metric]


def _keep(trial: optuna.Trial, recipe: Recipe, place: Workplace, progress: _Progress) -> Outcome:
    """Write what the best round predicts, and what the dashboard sorts by."""
    if progress.ending:
        trial.set_user_attr("ending", progress.ending)
    if not progress.best_round:
        return Outcome(state=TrialState.PRUNED, value=None)
    paths = place.paths.trial(trial.number)
    network = build_network(recipe.architecture, place.record.task)
    network.load_state_dict(progress.best_weights)
    network.to(place.images.images.device).to(memory_format=torch.channels_last)
    began = time.perf_counter()
    # In float32, as an exported bundle predicts.
    kept = {role: place.predict(network, rows, dtype=None) for role, rows in place.rows.items()}
    per_image = (time.perf_counter() - began) / sum(len(rows) for rows in place.rows.values())
    for role, predicted in kept.items():
        write_predictions(paths, role, predicted)
    write_weights(paths, progress.best_weights)
    write_history(paths, progress.history)
    best = score(kept["stop"], place.labels(place.rows["stop"]))
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
    exhibit_trial(
        trial,
        place.paths,
        stop_labels=place.images.labels[place.rows["stop"]].cpu().numpy(),
        class_names=place.record.class_names,
        best_round=progress.best_round,
    )
    return Outcome(state=TrialState.COMPLETE, value=_value(best, place))

"""One trial: suggest, build, train, predict, keep, score."""

import time
from dataclasses import dataclass

import optuna
import torch
from optuna.trial import TrialState

from search.clock import working_seconds
from search.exhibits import exhibit_trial
from search.judging import score
from search.memory import DoesNotFitError, mark_infeasible
from search.predictions import write_history, write_predictions, write_weights
from search.rounds import OutOfTimeError, Progress, TrialTime, run_rounds, value_of
from search.training import Diverged
from search.workplace import Workplace
from spaces.networks.builders import build_network
from spaces.recipe import Recipe
from spaces.space import suggest_recipe


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    state: TrialState
    value: float | None
    """Objective of the best round; None for a trial that is not complete."""


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
    place.room.reset()
    progress = Progress()
    _search(trial, recipe, place, progress, time_given)
    outcome = _keep(trial, recipe, place, progress)
    trial.set_user_attr("seconds", round(working_seconds() - progress.began, 2))
    return outcome


def _search(
    trial: optuna.Trial,
    recipe: Recipe,
    place: Workplace,
    progress: Progress,
    time_given: TrialTime,
) -> None:
    """Run the rounds of a trial; note why they end early, if they do.

    When this returns, nothing of the training is in memory but its best weights.
    """
    try:
        for finished in run_rounds(trial, recipe, place, progress, time_given):
            if finished.number < place.record.plan.n_rounds and trial.should_prune():
                progress.ending = f"pruned after round {finished.number}"
                break
    except Diverged as error:
        progress.ending = f"diverged: {error}"
    except OutOfTimeError:
        progress.ending = "out of time"
    except DoesNotFitError as error:
        progress.ending = f"out of memory: {error}"
        if not progress.best_round:
            mark_infeasible(trial)
    if place.room.n_parts > 1:
        n_images = min(recipe.optimizer.batch_size, len(place.images.rows))
        trial.set_user_attr("micro_batch", place.room.micro_batch(n_images))


def _keep(trial: optuna.Trial, recipe: Recipe, place: Workplace, progress: Progress) -> Outcome:
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
    return Outcome(state=TrialState.COMPLETE, value=value_of(best, place))

"""One trial: suggest, build, train, predict, keep, score."""

import shutil
import time
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import TrialState

from search.assignments import assignment_of
from search.clock import working_seconds
from search.exhibits import exhibit_trial
from search.judging import score
from search.memory import (
    DoesNotFitError,
    begin_measuring,
    limit_memory,
    mark_infeasible,
    measure,
    n_parts_at_first,
)
from search.paths import TrialPaths
from search.predictions import write_history, write_network
from search.rounds import Job, OutOfTimeError, Progress, TrialTime, run_rounds, value_of
from search.snapshots import differing
from search.training import Diverged
from search.trials import GPU_BYTES, OUT_OF_TIME
from search.workplace import Workplace
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
    assignment = assignment_of(
        trial.user_attrs, study_seed=place.record.config.seed, trial_number=trial.number
    )
    place = place.assigned(assignment)
    n_images = min(recipe.optimizer.batch_size, len(place.images.rows))
    size = place.record.task.image_size
    place.portions.reset(n_parts_at_first(n_images, size, place.images.device))
    limit_memory(place.images.device, place.panel.memory_share)
    begin_measuring(place.images.device)
    job = Job(recipe=recipe, assignment=assignment, time_given=time_given)
    progress = Progress()
    _search(trial, job, place, progress)
    outcome = _keep(trial, job, place, progress)
    trial.set_user_attr("seconds", round(working_seconds() - progress.began, 2))
    if use := measure(place.images.device):
        trial.set_user_attr(GPU_BYTES, [use.peak_bytes, use.total_bytes])
    return outcome


def _search(trial: optuna.Trial, job: Job, place: Workplace, progress: Progress) -> None:
    """Run the rounds of a trial; note why they end early, if they do.

    When this returns, nothing of the training is in memory but its best weights.
    """
    try:
        for finished in run_rounds(trial, job, place, progress):
            if finished.number < place.record.plan.n_rounds and trial.should_prune():
                progress.ending = f"pruned after round {finished.number}"
                break
    except Diverged as error:
        progress.ending = f"diverged: {error}"
    except OutOfTimeError:
        progress.ending = OUT_OF_TIME
    except DoesNotFitError as error:
        progress.ending = f"out of memory: {error}"
        if not progress.best_round:
            mark_infeasible(trial)
    if place.portions.n_parts > 1:
        n_images = min(job.recipe.optimizer.batch_size, len(place.images.rows))
        trial.set_user_attr("micro_batch", place.portions.micro_batch(n_images))


def _keep(trial: optuna.Trial, job: Job, place: Workplace, progress: Progress) -> Outcome:
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
    return Outcome(state=TrialState.COMPLETE, value=value_of(best, place))


def _keep_snapshots(
    paths: TrialPaths, recipe: Recipe, place: Workplace, progress: Progress
) -> None:
    """Write the other networks of a trial, in the place of any that a lost attempt left."""
    if paths.snapshots.is_dir():
        shutil.rmtree(paths.snapshots)
    if progress.ending == OUT_OF_TIME:
        return
    for name, weights in differing(progress.snapshots, progress.best_weights).items():
        predicted = place.predict_roles(place.load_network(recipe, weights))
        # No round was judged by weights without averaging: they may have run away.
        if all(np.isfinite(each).all() for each in predicted.values()):
            write_network(paths.snapshot(name), weights, predicted)

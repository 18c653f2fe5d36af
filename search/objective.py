"""One trial: suggest, build, train, predict, keep, score."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import optuna
import torch
from jaxtyping import Float
from optuna.trial import TrialState
from torch import Tensor, nn

from ensembles.calibration import fit_temperature
from ensembles.metrics import METRICS, MetricName
from ensembles.pool import normalize_log_probabilities
from ensembles.predictor import predict_log_probabilities
from search.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from search.paths import StudyPaths
from search.predictions import write_history, write_predictions, write_weights
from search.record import StudyRecord
from search.schedule import MAX_EPOCHS_BY_TIME, Deadline
from search.seeding import derive_seed
from search.training import (
    Diverged,
    Interrupted,
    Round,
    TrainingImages,
    n_steps_per_epoch,
    train,
)
from spaces.networks.builders import build_network
from spaces.recipe import Recipe
from spaces.space import suggest_recipe

logger = logging.getLogger(__name__)

SCORES: tuple[MetricName, ...] = ("log_loss", "accuracy", "balanced_accuracy", "macro_f1")
# A trial is judged as it would be exported: with a temperature. Label smoothing alone would
# otherwise cost 0.2 nats that one number gives back, and the search would avoid the best recipes.
SCORE_PRIOR_SIGMA = 0.5
PROBE_STEPS = 6
EVALUATION_CHUNK = 2000
# A trial whose length was fitted to its seconds may be this much slower than it was timed.
TOLERANCE = 1.5
# A checkpoint costs some 10 ms: too much after each round of a trial that lasts 2 s.
SECONDS_BETWEEN_CHECKPOINTS = 5.0


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a worker keeps open from trial to trial."""

    paths: StudyPaths
    record: StudyRecord
    images: TrainingImages
    rows: dict[str, Tensor]
    """Rows of the stop, ens and test roles."""
    autocast_dtype: torch.dtype | None
    slot: int
    stopping: Callable[[], bool]
    """Whether the worker shall hand its trial back."""


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
    recipe = suggest_recipe(trial, place.record.space, place.record.task)
    trial.set_user_attr("recipe", recipe.to_json())
    trial.set_user_attr("slot", place.slot)
    progress = _Progress()
    began = time.monotonic()
    try:
        for finished in _rounds(trial, recipe, place, progress, time_given):
            if trial.should_prune():
                progress.ending = f"pruned after round {finished.number}"
                break
    except Diverged as error:
        progress.ending = f"diverged: {error}"
    except _OutOfTimeError:
        progress.ending = "out of time"
    except (torch.OutOfMemoryError, MemoryError) as error:
        progress.ending = f"out of memory: {(str(error) or 'host').splitlines()[0]}"
    outcome = _keep(trial, recipe, place, progress)
    trial.set_user_attr("seconds", round(time.monotonic() - began, 2))
    return outcome


def predict_rows(
    network: nn.Module, place: Workplace, role: str, *, dtype: torch.dtype | None
) -> Float[np.ndarray, "images classes"]:
    """Return a network's log-probabilities for the images of one role, in bounded memory."""
    images, pad = place.images, place.images.pad
    size = place.record.task.image_size
    chunks = []
    for rows in place.rows[role].split(EVALUATION_CHUNK):
        cropped = images.images[rows][:, pad : pad + size, pad : pad + size]
        chunks.append(
            predict_log_probabilities(
                network,
                cropped,
                mean=images.mean,
                std=images.std,
                autocast_dtype=dtype,
            ).cpu()
        )
    return torch.cat(chunks).numpy()


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
    n_steps = saved.n_steps if saved else _plan_steps(trial, recipe, place, time_given.seconds)
    n_reported = len(trial.storage.get_trial(trial._trial_id).intermediate_values)
    saved_at = time.monotonic()
    for finished in _train(trial, recipe, place, time_given, n_steps, saved):
        _judge(finished, place, progress)
        if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            save_checkpoint(
                paths,
                Checkpoint(
                    n_steps=n_steps,
                    training=finished.state(),
                    history=progress.history,
                    best_round=progress.best_round,
                    best_weights=progress.best_weights,
                ),
            )
            saved_at = time.monotonic()
        if finished.number > n_reported:
            trial.report(_value(progress.history[-1], place), finished.number)
        yield finished


def _train(
    trial: optuna.Trial,
    recipe: Recipe,
    place: Workplace,
    time_given: TrialTime,
    n_steps: int,
    saved: Checkpoint | None,
) -> Iterator[Round]:
    """Train to the end of the schedule, of the trial's time, or of the worker."""
    timeout = place.record.config.trial_timeout_seconds or np.inf
    fitted = TOLERANCE * time_given.seconds if time_given.seconds else np.inf
    ends_at = time.monotonic() + min(timeout, fitted)
    deadline = time_given.deadline

    def out_of_time() -> bool:
        return time.monotonic() > ends_at or (deadline is not None and deadline.left() == 0)

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


def _plan_steps(
    trial: optuna.Trial, recipe: Recipe, place: Workplace, seconds: float | None
) -> int:
    """Return the steps of the whole schedule, which always anneals to its end.

    Where seconds set the length, a few steps of the very network are timed first, and as much of
    the schedule as fits into the rest is made of whole epochs.
    """
    plan = place.record.plan
    per_epoch = n_steps_per_epoch(len(place.images.rows), recipe.optimizer.batch_size)
    if plan.n_epochs is not None or seconds is None:
        return per_epoch * (plan.n_epochs or 1)
    per_step = _seconds_per_step(recipe, place, derive_seed(0, "probe", trial.number))
    per_evaluation = 0.3 * per_step * len(place.rows["stop"]) / recipe.optimizer.batch_size
    n_evaluations = plan.n_rounds + 1 + len(place.rows["test"]) / max(1, len(place.rows["stop"]))
    left = seconds - 2 * PROBE_STEPS * per_step - n_evaluations * per_evaluation
    n_steps = min(int(left / per_step), MAX_EPOCHS_BY_TIME * per_epoch)
    whole = n_steps // per_epoch * per_epoch
    return max(whole if whole >= 3 * per_epoch else n_steps, plan.n_rounds)


def _seconds_per_step(recipe: Recipe, place: Workplace, seed: int) -> float:
    """Time a few steps of a training that is thrown away; the first half of them warms up."""
    seconds = [
        finished.seconds
        for finished in train(
            recipe,
            place.record.task,
            place.images,
            n_steps=PROBE_STEPS,
            n_rounds=2,
            seed=seed,
            autocast_dtype=place.autocast_dtype,
        )
    ]
    return max((seconds[-1] - seconds[0]) / (PROBE_STEPS / 2), 1e-5)


def _judge(finished: Round, place: Workplace, progress: _Progress) -> None:
    """Score the network on the stop role, and remember it if it is the best so far."""
    predicted = predict_rows(finished.network, place, "stop", dtype=place.autocast_dtype)
    labels = place.images.labels[place.rows["stop"]].cpu().numpy()
    temperature = fit_temperature(predicted, labels, prior_sigma=SCORE_PRIOR_SIGMA)
    calibrated = normalize_log_probabilities(predicted / temperature)
    scores = {name: METRICS[name].compute(calibrated, labels) for name in SCORES}
    progress.history.append(
        {
            "round": finished.number,
            "train_loss": finished.train_loss,
            "images_seen": finished.images_seen,
            "seconds": round(finished.seconds, 3),
            "temperature": temperature,
            **{str(name): score for name, score in scores.items()},
        }
    )
    rises = METRICS[place.record.config.metric].higher_is_better
    value = _value(progress.history[-1], place)
    best = progress.history[progress.best_round - 1] if progress.best_round else None
    if best is None or (value > _value(best, place) if rises else value < _value(best, place)):
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
    for role in place.rows:  # in float32, as an exported bundle predicts
        write_predictions(paths, role, predict_rows(network, place, role, dtype=None))
    per_image = (time.perf_counter() - began) / sum(len(rows) for rows in place.rows.values())
    write_weights(paths, progress.best_weights)
    write_history(paths, progress.history)
    best = progress.history[progress.best_round - 1]
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
    return Outcome(state=TrialState.COMPLETE, value=_value(best, place))

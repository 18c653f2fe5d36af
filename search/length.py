"""How many steps a trial trains: whole epochs as stated, or what fits into its seconds."""

import itertools
import statistics
import time

import torch
from torch import nn

from search.schedule import MAX_EPOCHS_BY_TIME
from search.seeding import derive_seed
from search.snapshots import most_networks
from search.training import Round, n_steps_per_epoch, train
from search.workplace import Workplace
from spaces.recipe import Recipe

_WARM_UP_STEPS = 3
_TIMED_STEPS = 9
_PROBE_IMAGES = 500
_PROBE_REPEATS = 3


def plan_steps(
    recipe: Recipe,
    place: Workplace,
    seconds: float | None,
    *,
    epochs: float | None = None,
    seed: int,
) -> int:
    """Return the steps of the whole schedule, which always anneals to its end.

    Where seconds set the length, a few steps and predictions of the very network are timed first,
    and the schedule gets what the predictions of all rounds leave.

    Args:
        recipe: What the trial chose.
        place: Images and device.
        seconds: What the trial may take; only counts where the study states no epochs.
        epochs: Passes through the images, where the training was told; nothing is timed then.
        seed: Of the steps that are timed and thrown away.

    Returns:
        Whole epochs where at least three fit; never fewer steps than rounds.

    Raises:
        Interrupted: The worker is stopping.
    """
    plan = place.record.plan
    n_images = len(place.images.rows)
    if epochs is not None:
        batch_size = min(recipe.optimizer.batch_size, n_images)
        return max(round(epochs * n_images / batch_size), plan.n_rounds)
    per_epoch = n_steps_per_epoch(n_images, recipe.optimizer.batch_size)
    if plan.n_epochs is not None or seconds is None:
        return per_epoch * (plan.n_epochs or 1)
    began = time.perf_counter()
    per_step, per_image, per_final_image = _time_network(recipe, place, seed)
    judging = per_image * len(place.round_rows) * plan.n_rounds
    n_kept = most_networks(recipe, place.record.config.snapshots)
    keeping = n_kept * per_final_image * sum(len(rows) for rows in place.rows.values())
    left = seconds - (time.perf_counter() - began) - judging - keeping
    n_steps = min(int(left / per_step), MAX_EPOCHS_BY_TIME * per_epoch)
    whole = n_steps // per_epoch * per_epoch
    return max(whole if whole >= 3 * per_epoch else n_steps, plan.n_rounds)


def _time_network(recipe: Recipe, place: Workplace, seed: int) -> tuple[float, float, float]:
    """Return the seconds of a step, and of a predicted image in low and in full precision.

    The first runs, which pay for what is set up once, do not count. Of the others the faster ones
    do: what another process takes away now and then would shorten the whole schedule.
    """
    n_steps = _WARM_UP_STEPS + _TIMED_STEPS
    rounds: list[Round] = list(
        train(
            recipe,
            place.record.task,
            place.images,
            n_steps=n_steps,
            n_rounds=n_steps,
            seed=derive_seed(seed, "probe"),
            autocast_dtype=place.autocast_dtype,
            n_parts=place.portions.n_parts,
            interrupted=place.stopping,
        )
    )
    times = [each.seconds for each in rounds[_WARM_UP_STEPS - 1 :]]
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    per_step = statistics.mean(steps[: _TIMED_STEPS // 2])
    network = rounds[-1].network
    low, full = (_time_image(network, place, dtype) for dtype in (place.autocast_dtype, None))
    return max(per_step, 1e-5), low, full


def _time_image(network: nn.Module, place: Workplace, dtype: torch.dtype | None) -> float:
    rows = place.round_rows[:_PROBE_IMAGES]
    times = []
    for _ in range(_PROBE_REPEATS):
        began = time.perf_counter()
        place.predict(network, rows, dtype=dtype)
        times.append(time.perf_counter() - began)
    return min(times) / len(rows)

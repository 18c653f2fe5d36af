"""How many steps a trial trains: whole epochs as stated, or what fits into its seconds."""

import itertools
import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from search.schedule import MAX_EPOCHS_BY_TIME
from search.seeding import derive_seed
from search.snapshots import most_networks
from search.training import Round, n_steps_per_epoch, train
from search.workplace import Workplace
from spaces.augmentation import EARLY_STEPS
from spaces.recipe import Recipe

# Six of them early, of which three warm up, and nine late.
_N_STEPS = 15
_WARM_UP_STEPS = 3
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
    n_steps = int(left / per_step)
    if place.record.config.trial_budget is None:  # else the user has said how long
        n_steps = min(n_steps, MAX_EPOCHS_BY_TIME * per_epoch)
    whole = n_steps // per_epoch * per_epoch
    return max(whole if whole >= 3 * per_epoch else n_steps, plan.n_rounds)


def _time_network(recipe: Recipe, place: Workplace, seed: int) -> tuple[float, float, float]:
    """Return the seconds of a step, and of a predicted image in low and in full precision.

    The first runs, which pay for what is set up once, do not count. Of the others the faster ones
    do: what another process takes away now and then would shorten the whole schedule. Early steps
    may have smaller images, so they are timed by themselves.
    """
    rounds: list[Round] = list(
        train(
            recipe,
            place.record.task,
            place.images,
            n_steps=_N_STEPS,
            n_rounds=_N_STEPS,
            seed=derive_seed(seed, "probe"),
            autocast_dtype=place.autocast_dtype,
            n_parts=place.portions.n_parts,
            interrupted=place.stopping,
        )
    )
    times = [later.seconds - earlier.seconds for earlier, later in itertools.pairwise(rounds)]
    n_early = round(EARLY_STEPS * _N_STEPS) - 1  # the first step is in no difference
    early, late = times[_WARM_UP_STEPS - 1 : n_early], times[n_early + 1 :]
    per_step = EARLY_STEPS * _usual(early) + (1 - EARLY_STEPS) * _usual(late)
    network = rounds[-1].network
    low, full = (_time_image(network, place, dtype) for dtype in (place.autocast_dtype, None))
    return max(per_step, 1e-5), low, full


def _usual(seconds: Sequence[float]) -> float:
    """Return the mean of the faster half."""
    return statistics.mean(sorted(seconds)[: (len(seconds) + 1) // 2])


def _time_image(network: nn.Module, place: Workplace, dtype: torch.dtype | None) -> float:
    rows = place.round_rows[:_PROBE_IMAGES]
    times = []
    for _ in range(_PROBE_REPEATS):
        began = time.perf_counter()
        place.predict(network, rows, dtype=dtype)
        times.append(time.perf_counter() - began)
    return min(times) / len(rows)

"""The training loop: a recipe and images in, a network after each round out.

It knows neither Optuna nor files. Everything random comes from the seed: draws of its own from a
generator, the network's dropout from torch's global one, whose state the loop keeps to itself
between rounds. So a training does not depend on what its caller does in between, nor on how many
rounds it is cut into, and one that goes on from a saved state equals an unbroken one bit for bit
(on the same device, with one CPU thread).

The last partial batch of an epoch is dropped, so that shapes never change, but for the size of
images after the early steps; the next epoch is shuffled anew, so every image has the same chance.
"""

import copy
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from search.compiling import can_compile, compiling_pays
from search.teaching import Teaching
from spaces.augmentation import early_pixels, is_early
from spaces.mixing import MixedBatch, mix, split_batch
from spaces.networks.blocks import WhiteningConvolution
from spaces.networks.builders import build_network
from spaces.networks.initialization import initialize, whiten
from spaces.optimization import (
    build_average,
    build_optimizer,
    learning_rate_factor,
    set_learning_rate,
)
from spaces.recipe import Recipe
from spaces.suggestions.optimizer import clip_batch
from spaces.task import Task
from spaces.transfer import Feed, send
from spaces.transforms import augment, crop, draw_flips, normalize, shrink

_WHITENING_IMAGES = 5000
_WHITENING_VALUES = 1 << 24
_STEM_TRAINS_FOR = 0.3
"""Share of the steps after which the bias of a whitening stem is frozen too (Jordan 2024)."""


class Diverged(Exception):  # noqa: N818
    """A loss or a weight is not finite any more."""


class Interrupted(Exception):  # noqa: N818
    """The caller wants the training to end."""


def unheard(_rows: Tensor) -> None:
    """Announce images to nobody."""


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Images, labels and which of them to train on."""

    images: UInt8[Tensor, "n padded padded c"]
    """Pixels of all images, `pad` pixels of reflection around each; on the device that computes,
    or on the CPU: then each batch is sent to the device while it works on the one before."""
    labels: Int64[Tensor, " n"]
    """On the device that computes."""
    rows: Int64[Tensor, " rows"]
    """The images to train on; on the CPU."""
    pad: int
    mean: tuple[float, ...]
    """Of each channel, for pixels from 0 to 1."""
    std: tuple[float, ...]
    teaching: Teaching | None = None
    """What is learned of the images besides their labels, if anything."""
    announce: Callable[[Tensor], None] = unheard
    """Is told which rows are next, where images may have to be read from a disk."""

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self.labels.device


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a training has reached at the end of a round."""

    number: int
    """Counted from 1."""
    network: nn.Module
    """In `eval()` mode, with the weights to evaluate and keep; the same object in each round."""
    unaveraged: nn.Module | None
    """The network that is trained, where `network` is an average of it; look at its weights only
    before the next round begins, and leave its mode alone."""
    train_loss: float
    """Mean over the steps of the round, of the loss that is trained on."""
    images_seen: int
    """Since the training began, counted with repeats."""
    seconds: float
    """Spent on training since it began."""
    state: Callable[[], dict[str, object]]
    """Copies everything needed to go on from here; call it before the next round begins."""


def n_steps_per_epoch(n_images: int, batch_size: int) -> int:
    """Return the whole batches in an epoch; a batch holds at most all images."""
    return n_images // min(batch_size, n_images)


def train(  # noqa: PLR0913
    recipe: Recipe,
    task: Task,
    images: TrainingImages,
    *,
    n_steps: int,
    n_rounds: int,
    seed: int,
    autocast_dtype: torch.dtype | None,
    rungs: Sequence[int] = (),
    n_parts: int = 1,
    resume: Mapping[str, Any] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Round]:
    """Train a network from the start, or from a saved state, to the end of its schedule.

    Args:
        recipe: Network, optimizer and augmentation.
        task: Shape of the problem.
        images: What to train on; their device computes.
        n_steps: Length of the schedule, which always anneals to its end.
        n_rounds: How often to report, evenly over the steps; at most once a step.
        seed: Of everything random.
        autocast_dtype: Lower precision for forward and backward passes, or None for float32.
        n_parts: Parts of each batch, one after the other in memory; their gradients are added up.
            Batch norm sees the parts; all else is that of the whole batch, but for rounding and
            for which units dropout drops.
        rungs: Rounds, rising, at whose ends a complete schedule ends and the next one begins:
            the learning rate is warmed up again, the weights stay (Loshchilov and Hutter 2017).
        resume: What `Round.state` returned in a training with the same other arguments; without
            `rungs`, `n_rounds` may differ if the state's step ends a round in both.
        interrupted: Asked before every step.

    Yields:
        Each round at its end, those of `resume` left out.

    Raises:
        Diverged: The loss or the weights are not finite at the end of a round.
        Interrupted: `interrupted` said so.
    """
    began = time.perf_counter()
    n_rounds = min(n_rounds, n_steps)
    ends = [math.ceil(n_steps * number / n_rounds) for number in range(1, n_rounds + 1)]
    schedule_ends = (*(ends[number - 1] for number in rungs if number < n_rounds), n_steps)
    training = _Training(recipe, task, images, schedule_ends, seed, autocast_dtype)
    training.n_parts = n_parts
    if resume is not None:
        training.load(resume)
    training.seconds += time.perf_counter() - began
    for number, end in enumerate(ends, start=1):
        if end <= training.n_steps_done:
            continue
        began = time.perf_counter()
        train_loss = training.run_to(end, interrupted)
        training.seconds += time.perf_counter() - began
        training.compile_if_it_pays()
        yield Round(
            number=number,
            network=training.evaluated.eval(),
            unaveraged=training.unaveraged,
            train_loss=train_loss,
            images_seen=training.n_steps_done * training.batch_size,
            seconds=training.seconds,
            state=training.state,
        )


class _Training:
    """Everything that changes in the course of one training."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        images: TrainingImages,
        schedule_ends: Sequence[int],
        seed: int,
        autocast_dtype: torch.dtype | None,
    ) -> None:
        optimizer = clip_batch(recipe.optimizer, len(images.rows))
        recipe = replace(recipe, optimizer=optimizer)
        self._recipe, self._task, self._images = recipe, task, images
        self._schedule_ends, self._n_steps = schedule_ends, schedule_ends[-1]
        self._autocast_dtype = autocast_dtype
        self._device = images.device
        self.batch_size = optimizer.batch_size
        self._per_epoch = n_steps_per_epoch(len(images.rows), self.batch_size)
        torch.manual_seed(seed)
        self._generator = Generator().manual_seed(seed)
        self._sides = torch.rand(len(images.images), generator=self._generator) < 0.5
        self._network = _start_network(recipe, task, images, self._generator)
        self._forward: Callable[[Tensor], Tensor] = self._network
        self._optimizer = build_optimizer(self._network, recipe.optimizer)
        self._average = build_average(recipe.optimizer.averaging, self._network)
        self._scaler = torch.amp.GradScaler(
            self._device.type, enabled=autocast_dtype == torch.float16
        )
        self._order = images.rows
        self._feed = Feed(self._device)
        self._shift = round(recipe.augmentation.crop * task.image_size)
        # A teacher is not asked about images of another size than its own.
        early_size = 1.0 if images.teaching else recipe.augmentation.early_size
        self._early_pixels = early_pixels(early_size, task.image_size)
        self._stem_freezes_at = math.ceil(_STEM_TRAINS_FOR * self._n_steps)
        self._random = _get_global_random(self._device)
        self.n_parts = 1
        self.n_steps_done = 0
        self.seconds = 0.0

    @property
    def evaluated(self) -> nn.Module:
        """The network with the weights to evaluate: the average, if there is one."""
        return self._network if self._average is None else self._average.network

    @property
    def unaveraged(self) -> nn.Module | None:
        """The network that is trained, if it is not the one to evaluate."""
        return None if self._average is None else self._network

    def run_to(self, n_steps: int, interrupted: Callable[[], bool]) -> float:
        """Train until `n_steps` are done, and return the mean loss."""
        _set_global_random(self._random, self._device)
        self._network.train()
        first = self.n_steps_done
        total_loss = torch.zeros((), device=self._device)
        while self.n_steps_done < n_steps:
            if interrupted():
                raise Interrupted(f"after {self.n_steps_done} of {self._n_steps} steps")
            total_loss += self._step()
        self._random = _get_global_random(self._device)
        train_loss = total_loss.item() / (n_steps - first)
        if not (math.isfinite(train_loss) and _is_finite(self.evaluated)):
            raise Diverged(f"mean loss {train_loss} in steps {first + 1} to {n_steps}")
        return train_loss

    def compile_if_it_pays(self) -> None:
        """Compile the network for what is left of the schedule, if that is long enough.

        Not before the stem is frozen and images are whole: each of these compiles it anew.
        """
        is_late = self._stem_freezes_at < self.n_steps_done < self._n_steps
        if not is_late or is_early(*self._place_in_schedule()):
            return
        left = self.seconds / self.n_steps_done * (self._n_steps - self.n_steps_done)
        if compiling_pays(self._device, seconds_left=left) and can_compile():
            self.compile()

    def compile(self, *, backend: str = "inductor") -> None:
        """Compile the network that trains, anew for each size of images."""
        if self._forward is self._network:
            self._forward = torch.compile(self._network, dynamic=False, backend=backend)

    def state(self) -> dict[str, object]:
        """Copy everything needed to go on: tensors, numbers and dicts of them."""
        state = {
            "n_steps_done": self.n_steps_done,
            "seconds": self.seconds,
            "network": self._network.state_dict(),
            "average": None if self._average is None else self._average.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self._generator.get_state(),
            "random": self._random,
            "order": self._order,
        }
        return copy.deepcopy(state)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to a state; its tensors may be on any device."""
        self.n_steps_done, self.seconds = state["n_steps_done"], state["seconds"]
        self._network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.network.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._generator.set_state(state["generator"].cpu())
        self._random = {kind: random.cpu() for kind, random in state["random"].items()}
        self._order = state["order"].cpu()
        if self.n_steps_done > self._stem_freezes_at:
            _freeze_stem(self._network)

    def _step(self) -> Tensor:
        """Train on one batch, and return its loss without waiting for it."""
        n_done, n_steps = self._place_in_schedule()
        factor = learning_rate_factor(self._recipe.optimizer, n_done / n_steps)
        set_learning_rate(self._optimizer, factor)
        if self.n_steps_done == self._stem_freezes_at:
            _freeze_stem(self._network)
        batch = self._next_batch(
            size=self._early_pixels if is_early(n_done, n_steps) else self._task.image_size
        )
        self._optimizer.zero_grad()
        loss = torch.zeros((), device=self._device)
        for part in split_batch(batch, self.n_parts):
            # The share makes the sum of the parts' means the mean of the batch.
            part_loss = self._loss(part) * (len(part.labels) / self.batch_size)
            self._scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.n_steps_done += 1
        if self._average is not None:
            self._average.update(n_done + 1, n_steps)
        return loss

    def _place_in_schedule(self) -> tuple[int, int]:
        """Return the steps already done of the schedule that runs, and those that it has."""
        number = bisect_right(self._schedule_ends, self.n_steps_done)
        begin = self._schedule_ends[number - 1] if number else 0
        return self.n_steps_done - begin, self._schedule_ends[number] - begin

    def _next_batch(self, *, size: int) -> MixedBatch:
        """Choose, vary, shrink and mix the images of the next step."""
        images, augmentation, generator = self._images, self._recipe.augmentation, self._generator
        epoch, number = divmod(self.n_steps_done, self._per_epoch)
        if number == 0:
            self._order = images.rows[torch.randperm(len(images.rows), generator=generator)]
        rows, following = (
            self._order[place * self.batch_size : (place + 1) * self.batch_size]
            for place in (number, number + 1)
        )
        if number == 0:  # all at a time, not one by one
            images.announce(rows)
        if number + 1 < self._per_epoch:
            images.announce(following)
        mirrored = draw_flips(
            augmentation.flip, self._sides[rows], epoch=epoch, generator=generator
        )
        pixels = crop(
            images.images,
            send(rows, images.images.device),
            mirrored,
            pad=images.pad,
            shift=self._shift,
            generator=generator,
        )
        varied = augment(
            self._feed.send(pixels),
            augmentation,
            mean=images.mean,
            std=images.std,
            generator=generator,
        )
        labels = images.labels[send(rows, self._device)]
        return mix(shrink(varied, size), labels, augmentation, generator)

    def _loss(self, batch: MixedBatch) -> Tensor:
        """Return the mean loss of some images, their targets smoothed and mixed.

        A teacher is asked about the very images that the network sees, mixed as they are.
        """
        teaching = self._images.teaching
        with torch.autocast(
            self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None
        ):
            logits = self._forward(batch.images)
            told = teaching.ask(batch.images) if teaching else None
        smoothing = self._recipe.optimizer.label_smoothing
        losses = [
            F.cross_entropy(logits.float(), labels, label_smoothing=smoothing) * share
            for labels, share in (
                (batch.labels, batch.share),
                (batch.other_labels, 1 - batch.share),
            )
            if share > 0
        ]
        loss = torch.stack(losses).sum()
        if teaching is None or told is None:
            return loss
        return teaching.loss(loss, logits.float(), told)


def _start_network(
    recipe: Recipe, task: Task, images: TrainingImages, generator: Generator
) -> nn.Module:
    """Build the network on its device, with the weights that it starts from."""
    network = build_network(recipe.architecture, task)
    initialize(network, recipe.architecture, generator)
    network.to(images.device).to(memory_format=torch.channels_last)
    if recipe.architecture.stem == "whitening":
        values_each = task.image_size**2 * task.channels
        n = min(len(images.rows), _WHITENING_IMAGES, max(1, _WHITENING_VALUES // values_each))
        chosen = torch.randperm(len(images.rows), generator=generator)[:n]
        inside = slice(images.pad, images.pad + task.image_size)
        images.announce(images.rows[chosen])
        rows = images.rows[chosen].to(images.images.device)
        pixels = images.images[rows][:, inside, inside].to(images.device)
        whiten(network, normalize(pixels, images.mean, images.std))
    return network


def _freeze_stem(network: nn.Module) -> None:
    """Stop training the bias of a whitening stem; the backward pass then ends above it."""
    for module in network.modules():
        if isinstance(module, WhiteningConvolution) and module.bias is not None:
            module.bias.requires_grad_(False)  # noqa: FBT003
            module.bias.grad = None


@torch.no_grad()
def _is_finite(network: nn.Module) -> bool:
    """Return whether no weight and no statistic is infinite or not a number."""
    tensors = [*network.parameters(), *network.buffers()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _get_global_random(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's global generators that a network may draw from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_global_random(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)

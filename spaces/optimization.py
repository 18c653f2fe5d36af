"""The optimizer of a training, its learning rates and its average of weights."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spaces.muon import Muon
from spaces.optimizer import Averaging, Optimizer, OptimizerName, ScheduleName

_WARMUP_FROM = 0.2
_LINEAR_TO = 0.07
WSD_DECAY = 0.2
"""Share of the steps in which the schedule `wsd` decays."""
_LOOKAHEAD_EVERY = 5
# From the rate of the convolutions to that of the other weights: 0.24 and 0.75 at batch 512.
_MUON_TO_SGD = 3.1


def build_optimizer(network: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Build the optimizer of a network's trainable parameters.

    Weight decay is left out for norms and biases: a norm takes it as a mere change of scale. The
    biases of norm layers, and no others, learn `norm_bias_factor` times faster. For AdamW decay
    is decoupled from the gradient, for the others it is a part of it (torch's conventions).

    Args:
        network: On its device; frozen parameters are left out.
        optimizer: Its name and numbers. Each group's learning rate is the peak, and is kept as
            `initial_lr`; `set_learning_rate` moves it along the schedule.
    """
    groups = [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for parameters, rate, decay in _parameter_groups(network, optimizer)
        if parameters
    ]
    return _BUILDERS[optimizer.name](groups, optimizer)


def learning_rate_factor(optimizer: Optimizer, progress: float) -> float:
    """Return the share of the peak learning rate at a time of the training.

    Every schedule rises from 0.2 to 1 during the warmup. After it `linear` falls to 0.07 (Jordan
    2024), `cosine` to 0, `step` to a tenth at half and to a hundredth at three quarters of the
    training, all within the budget; `constant` stays; `wsd`, warmup-stable-decay, stays for the
    first four fifths of the training and falls to 0 in the last one (Hu et al. 2024, arXiv
    2404.06395; Hägele et al. 2024, arXiv 2405.18392).

    Args:
        optimizer: Its schedule and warmup.
        progress: Share of the steps already done, in [0, 1].
    """
    if progress < optimizer.warmup:
        return _WARMUP_FROM + (1 - _WARMUP_FROM) * progress / optimizer.warmup
    after_warmup = (progress - optimizer.warmup) / (1 - optimizer.warmup)
    return _SCHEDULES[optimizer.schedule](progress, after_warmup)


def set_learning_rate(built: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to a share of its peak."""
    for group in built.param_groups:
        group["lr"] = group["initial_lr"] * factor


class WeightAverage:
    """An average of a network's weights over its training, kept as a second network.

    * `ema`: every step, an exponential average that reaches back over a tenth of all steps (decay
      1 - 10 / steps; less in the first ones, so that the weights before them are soon forgotten).
    * `lookahead`: every 5 steps the average moves toward the weights, by less and less, and the
      weights start again from the average (Zhang et al. 2019; Jordan 2024 for the decay,
      0.95^5 (step / steps)^3). After the last step both are the same.

    Both count the steps of one schedule; where another one follows, they begin anew.

    Running statistics of norm layers are averaged like the weights. They describe what the
    average sees to first order, cost no pass over the images, and forget the early networks as
    the weights do; copied ones would describe the last network, not the averaged one.
    """

    def __init__(self, averaging: Averaging, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()  # noqa: FBT003
        """The average, ready to be evaluated."""
        self._averaging = averaging
        averaged, current = (list(_state(each)) for each in (self.network, network))
        is_float = [tensor.is_floating_point() for tensor in current]
        self._averages, self._weights = (
            [tensor for tensor, chosen in zip(tensors, is_float, strict=True) if chosen]
            for tensors in (averaged, current)
        )
        self._counters = [
            pair
            for pair, chosen in zip(zip(averaged, current, strict=True), is_float, strict=True)
            if not chosen
        ]

    @torch.no_grad()
    def update(self, n_steps_done: int, n_steps: int) -> None:
        """Take in the weights after a step of a schedule, counted from 1, of so many."""
        if self._averaging == "ema":
            decay = min(max(0.0, 1 - 10 / n_steps), n_steps_done / (9 + n_steps_done))
            torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        elif n_steps_done % _LOOKAHEAD_EVERY == 0 or n_steps_done == n_steps:
            decay = 0.95**_LOOKAHEAD_EVERY * (n_steps_done / n_steps) ** 3
            torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
            torch._foreach_copy_(self._weights, self._averages)
        for averaged, current in self._counters:
            averaged.copy_(current)


def build_average(averaging: Averaging, network: nn.Module) -> WeightAverage | None:
    """Build the average of a network's weights, if there is to be one."""
    return None if averaging == "none" else WeightAverage(averaging, network)


def _parameter_groups(
    network: nn.Module, optimizer: Optimizer
) -> list[tuple[list[nn.Parameter], float, float]]:
    """Return parameters, learning rate and weight decay of each group."""
    norm_biases = {
        module.bias for module in network.modules() if isinstance(module, _NORMS) and module.affine
    }
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [each for each in trained if each.ndim > 1]
    fast = [each for each in trained if each in norm_biases]
    chosen = {*decayed, *fast}
    rate = optimizer.learning_rate
    return [
        (decayed, rate, optimizer.weight_decay),
        ([each for each in trained if each not in chosen], rate, 0.0),
        (fast, rate * optimizer.norm_bias_factor, 0.0),
    ]


_NORMS = (nn.BatchNorm2d, nn.GroupNorm)

Groups = list[dict[str, Any]]


def _build_sgd(groups: Groups, optimizer: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov and optimizer.momentum > 0,
        fused=True,
    )


def _build_adagrad(groups: Groups, _: Optimizer) -> torch.optim.Optimizer:
    # Torch has a fused Adagrad for the CPU alone; None lets it choose.
    on_cpu = all(each.device.type == "cpu" for group in groups for each in group["params"])
    return torch.optim.Adagrad(groups, fused=on_cpu or None)


def _build_rmsprop(groups: Groups, optimizer: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, momentum=optimizer.momentum, foreach=True)


def _build_adam(groups: Groups, optimizer: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, betas=(optimizer.momentum, 0.999), fused=True)


def _build_adamw(groups: Groups, optimizer: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=(optimizer.momentum, 0.999), fused=True)


def _build_muon(groups: Groups, optimizer: Optimizer) -> torch.optim.Optimizer:
    split = []
    for group in groups:
        for orthogonal in (True, False):
            chosen = [each for each in group["params"] if (each.ndim == 4) == orthogonal]
            rate = group["lr"] * (1 if orthogonal else _MUON_TO_SGD)
            changes = {"params": chosen, "lr": rate, "initial_lr": rate, "orthogonal": orthogonal}
            split.append({**group, **changes})
    return Muon([group for group in split if group["params"]], momentum=optimizer.momentum)


_BUILDERS: Mapping[OptimizerName, Callable[[Groups, Optimizer], torch.optim.Optimizer]] = {
    "adagrad": _build_adagrad,
    "adam": _build_adam,
    "adamw": _build_adamw,
    "muon": _build_muon,
    "rmsprop": _build_rmsprop,
    "sgd": _build_sgd,
}

_SCHEDULES: Mapping[ScheduleName, Callable[[float, float], float]] = {
    "constant": lambda _, __: 1.0,
    "cosine": lambda _, after_warmup: 0.5 * (1 + math.cos(math.pi * after_warmup)),
    "linear": lambda _, after_warmup: 1 - (1 - _LINEAR_TO) * after_warmup,
    "step": lambda progress, _: 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01,
    "wsd": lambda progress, _: min(1.0, (1 - progress) / WSD_DECAY),
}


def _state(network: nn.Module) -> Iterator[Tensor]:
    """Iterate over everything that training changes in a network."""
    yield from network.parameters()
    yield from network.buffers()

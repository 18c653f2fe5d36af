from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from spaces.optimization import (
    WeightAverage,
    build_average,
    build_optimizer,
    learning_rate_factor,
    set_learning_rate,
)
from spaces.optimizer import Averaging, Optimizer, OptimizerName, ScheduleName

PLAIN = Optimizer(
    name="sgd",
    learning_rate=0.1,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    norm_bias_factor=1.0,
    schedule="linear",
    warmup=0.0,
    batch_size=8,
    label_smoothing=0.0,
    averaging="none",
)


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def one_weight(value: float) -> nn.Linear:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def weight_of(average: WeightAverage) -> float:
    return float(average.network.state_dict()["weight"])


def step_with_gradient(network: nn.Linear, optimizer: Optimizer, gradient: float) -> float:
    built = build_optimizer(network, optimizer)
    network.weight.grad = torch.full((1, 1), gradient)
    built.step()
    return network.weight.item()


def test_decay_spares_norms_and_biases_and_norm_biases_alone_learn_faster() -> None:
    network = small_network()

    built = build_optimizer(network, replace(PLAIN, weight_decay=0.01, norm_bias_factor=64.0))

    names = {parameter: name for name, parameter in network.named_parameters()}
    settings = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in built.param_groups
        for parameter in group["params"]
    }
    assert settings == {
        "0.weight": (0.1, 0.01),
        "0.bias": (0.1, 0.0),
        "1.weight": (0.1, 0.0),
        "1.bias": (6.4, 0.0),
        "3.weight": (0.1, 0.01),
        "3.bias": (0.1, 0.0),
    }


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_frozen_parameters_are_left_out_and_the_others_move(name: OptimizerName) -> None:
    network = small_network()
    network[0].weight.requires_grad_(False)  # noqa: FBT003
    before = [parameter.clone() for parameter in network.parameters()]

    built = build_optimizer(network, replace(PLAIN, name=name, momentum=0.9))
    network(torch.randn(5, 3, 3, 3)).square().sum().backward()
    built.step()

    moved = [
        not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)
    ]
    assert moved == [False, True, True, True, True, True]


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_is_fused_on_the_cpu_where_torch_can(name: OptimizerName) -> None:
    built = build_optimizer(small_network(), replace(PLAIN, name=name))

    assert all(
        bool(group.get("fused")) == (name not in ("rmsprop", "muon"))
        for group in built.param_groups
    )


def test_decay_of_sgd_is_part_of_the_gradient() -> None:
    moved = step_with_gradient(one_weight(2.0), replace(PLAIN, weight_decay=0.5), 3.0)

    assert moved == pytest.approx(2.0 - 0.1 * (3.0 + 0.5 * 2.0))


def test_decay_of_adamw_is_apart_from_the_gradient() -> None:
    adamw = replace(PLAIN, name="adamw", momentum=0.9, weight_decay=0.5)

    moved = step_with_gradient(one_weight(2.0), adamw, 3.0)

    # The first step of Adam has the length of the learning rate, whatever the gradient.
    assert moved == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, abs=1e-5)


def test_nesterov_looks_one_step_ahead_and_needs_momentum() -> None:
    nesterov = replace(PLAIN, momentum=0.5, nesterov=True)

    moved = step_with_gradient(one_weight(1.0), nesterov, 1.0)
    without_momentum = step_with_gradient(one_weight(1.0), replace(nesterov, momentum=0.0), 1.0)

    assert moved == pytest.approx(1.0 - 0.1 * 1.5)
    assert without_momentum == pytest.approx(0.9)


def test_the_learning_rate_of_every_group_follows_the_schedule() -> None:
    built = build_optimizer(small_network(), replace(PLAIN, norm_bias_factor=10.0))

    set_learning_rate(built, 0.5)
    set_learning_rate(built, 0.25)

    assert [group["lr"] for group in built.param_groups] == pytest.approx([0.025, 0.025, 0.25])


@pytest.mark.parametrize(
    ("schedule", "at_start", "at_40_percent", "at_60_percent", "at_80_percent", "at_end"),
    [
        ("linear", 1.0, 0.628, 0.442, 0.256, 0.07),
        ("cosine", 1.0, 0.6545085, 0.3454915, 0.0954915, 0.0),
        ("step", 1.0, 1.0, 0.1, 0.01, 0.01),
        ("constant", 1.0, 1.0, 1.0, 1.0, 1.0),
        ("wsd", 1.0, 1.0, 1.0, 1.0, 0.0),
    ],
)
def test_schedules_without_warmup_have_their_known_values(
    schedule: ScheduleName,
    at_start: float,
    at_40_percent: float,
    at_60_percent: float,
    at_80_percent: float,
    at_end: float,
) -> None:
    optimizer = replace(PLAIN, schedule=schedule)

    factors = [learning_rate_factor(optimizer, time) for time in (0, 0.4, 0.6, 0.8, 1)]

    assert factors == pytest.approx(
        [at_start, at_40_percent, at_60_percent, at_80_percent, at_end]
    )


def test_wsd_decays_evenly_in_its_last_fifth() -> None:
    optimizer = replace(PLAIN, schedule="wsd")

    factors = [learning_rate_factor(optimizer, time) for time in (0.85, 0.9, 0.95)]

    assert factors == pytest.approx([0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", get_args(ScheduleName))
def test_the_warmup_rises_from_a_fifth_to_the_peak(schedule: ScheduleName) -> None:
    optimizer = replace(PLAIN, schedule=schedule, warmup=0.2)

    factors = [learning_rate_factor(optimizer, time) for time in (0, 0.1, 0.2)]

    assert factors == pytest.approx([0.2, 0.6, 1.0])


def test_no_averaging_builds_no_average() -> None:
    assert build_average("none", small_network()) is None


def test_the_exponential_average_follows_its_decay() -> None:
    network = one_weight(0.0)
    average = WeightAverage("ema", network)

    values = []
    for step in range(1, 21):
        nn.init.constant_(network.weight, float(step))
        average.update(step, 20)
        values.append(weight_of(average))

    # Decay t / (9 + t) = 0.1, 2/11, 0.25 ... until it reaches 1 - 10 / 20 after nine steps.
    assert values[:2] == pytest.approx([0.9, 0.9 * 2 / 11 + 2 * 9 / 11])
    assert values[19] == pytest.approx(0.5 * values[18] + 0.5 * 20)
    assert network.weight.item() == 20


def test_an_average_of_equal_weights_is_those_weights() -> None:
    network = one_weight(0.7)
    average = WeightAverage("ema", network)

    for step in range(1, 6):
        average.update(step, 5)

    assert weight_of(average) == network.weight.item()


def test_lookahead_pulls_the_weights_back_every_five_steps_and_at_the_end() -> None:
    network = one_weight(0.0)
    average = WeightAverage("lookahead", network)

    values = []
    for step in range(1, 13):
        nn.init.constant_(network.weight, float(step))
        average.update(step, 12)
        values.append(network.weight.item())

    decay_5, decay_10, decay_12 = (0.95**5 * (step / 12) ** 3 for step in (5, 10, 12))
    at_5 = (1 - decay_5) * 5
    at_10 = decay_10 * at_5 + (1 - decay_10) * 10
    at_12 = decay_12 * at_10 + (1 - decay_12) * 12
    expected = [1, 2, 3, 4, at_5, 6, 7, 8, 9, at_10, 11, at_12]
    assert values == pytest.approx(expected)
    assert weight_of(average) == network.weight.item()


@pytest.mark.parametrize("averaging", ["ema", "lookahead"])
def test_running_statistics_are_averaged_and_counters_copied(averaging: Averaging) -> None:
    norm = nn.BatchNorm2d(1)
    average = WeightAverage(averaging, norm)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None

    norm.running_mean.fill_(1.0)
    norm.num_batches_tracked.fill_(7)
    average.update(5, 5)

    decay = {"ema": 0.0, "lookahead": 0.95**5}[averaging]
    averaged: dict[str, Tensor] = average.network.state_dict()
    assert float(averaged["running_mean"]) == pytest.approx(1 - decay)
    assert int(averaged["num_batches_tracked"]) == 7


def test_the_averaged_network_is_ready_to_be_evaluated() -> None:
    network = small_network().train()

    average = WeightAverage("ema", network)

    assert not any(module.training for module in average.network.modules())
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert network.training

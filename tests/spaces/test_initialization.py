from collections.abc import Callable
from math import sqrt
from typing import get_args

import pytest
import torch
from torch import nn

from spaces.architecture import Architecture, Initialization, Stage
from spaces.networks.builders import build_network
from spaces.networks.initialization import initialize, whiten
from spaces.task import Task


def started(architecture: Architecture, task: Task, seed: int = 0) -> nn.Module:
    network = build_network(architecture, task)
    initialize(network, architecture, torch.Generator().manual_seed(seed))
    return network


def convolution(network: nn.Module, index: int) -> nn.Conv2d:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)][index]


@pytest.mark.parametrize("initialization", get_args(Initialization))
def test_one_seed_gives_one_network_whatever_the_global_generator_does(
    make_architecture: Callable[..., Architecture], cifar: Task, initialization: Initialization
) -> None:
    architecture = make_architecture(initialization=initialization, norm="none")
    first = started(architecture, cifar)
    torch.rand(5)
    second, other = started(architecture, cifar), started(architecture, cifar, seed=1)

    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(convolution(first, 0).weight, convolution(other, 0).weight)


@pytest.mark.parametrize("initialization", get_args(Initialization))
def test_initializing_leaves_the_global_generator_alone(
    make_architecture: Callable[..., Architecture], cifar: Task, initialization: Initialization
) -> None:
    architecture = make_architecture(initialization=initialization)
    network = build_network(architecture, cifar)
    before = torch.get_rng_state()

    initialize(network, architecture, torch.Generator().manual_seed(0))

    assert torch.equal(torch.get_rng_state(), before)


def test_he_draws_with_the_deviation_of_its_paper() -> None:
    layer = nn.Conv2d(32, 64, 3)
    network = nn.Sequential(layer)
    architecture = _wide("he")

    initialize(network, architecture, torch.Generator().manual_seed(0))

    assert layer.weight.std().item() == pytest.approx(sqrt(2 / (32 * 9)), rel=0.02)


def test_xavier_stays_within_the_bound_of_its_paper() -> None:
    layer = nn.Conv2d(32, 64, 3)

    initialize(nn.Sequential(layer), _wide("xavier"), torch.Generator().manual_seed(0))

    bound = sqrt(6 / (32 * 9 + 64 * 9))
    assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def _wide(initialization: Initialization) -> Architecture:
    return Architecture(
        family="plain",
        stem="convolution",
        stem_width=8,
        stages=(Stage(width=8, kernel_size=3, n_convolutions=1),),
        pooling="max",
        norm="none",
        activation="relu",
        head="max",
        dropout=0.0,
        initialization=initialization,
        logit_scale=1.0,
    )


@pytest.mark.parametrize(("in_channels", "out_channels"), [(4, 9), (9, 4), (5, 5)])
def test_identity_passes_the_first_channels_on(in_channels: int, out_channels: int) -> None:
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    initialize(nn.Sequential(layer), _wide("identity"), torch.Generator().manual_seed(0))
    features = torch.randn(2, in_channels, 6, 6, generator=torch.Generator().manual_seed(1))

    passed = layer(features)

    n_passed = min(in_channels, out_channels)
    torch.testing.assert_close(passed[:, :n_passed], features[:, :n_passed])
    assert not layer.weight[n_passed:].eq(0).any()


def test_norms_start_as_the_identity_and_biases_at_zero(
    make_architecture: Callable[..., Architecture], cifar: Task
) -> None:
    architecture = make_architecture(stem="whitening")
    network = build_network(architecture, cifar)
    for value in network.state_dict().values():
        value.fill_(7)

    initialize(network, architecture, torch.Generator().manual_seed(0))

    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.weight.eq(1).all()
    assert norm.running_mean is not None
    assert norm.running_mean.eq(0).all()
    first = convolution(network, 0)
    assert first.bias is not None
    assert first.bias.eq(0).all()


@pytest.mark.parametrize(("size", "channels"), [(16, 3), (8, 1), (60, 3), (130, 1)])
def test_whitened_outputs_are_uncorrelated_and_of_unit_variance(
    make_architecture: Callable[..., Architecture], size: int, channels: int
) -> None:
    task = Task(image_size=size, channels=channels, n_classes=2)
    network = started(make_architecture(stem="whitening"), task)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, channels, size, size, generator=generator)
    images = nn.functional.avg_pool2d(images, 3, stride=1, padding=1) * 3

    whiten(network, images)

    first = convolution(network, 0)
    outputs = first(images).transpose(0, 1).flatten(1)[: first.out_channels // 2]
    moment = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(moment, torch.eye(len(moment)), atol=0.03, rtol=0)


def test_the_second_half_of_the_whitening_filters_is_the_negative_of_the_first(
    make_architecture: Callable[..., Architecture], cifar: Task
) -> None:
    network = started(make_architecture(stem="whitening"), cifar)

    whiten(network, torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)))

    weight = convolution(network, 0).weight
    assert torch.equal(weight[:12], -weight[12:])
    assert not weight.requires_grad


def test_directions_without_variance_are_not_blown_up(
    make_architecture: Callable[..., Architecture], digits: Task
) -> None:
    network = started(make_architecture(stem="whitening"), digits)

    whiten(network, torch.zeros(5, 1, 8, 8))

    largest = convolution(network, 0).weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(largest, torch.full((8,), 1 / sqrt(5e-4)))


def test_whitening_leaves_another_stem_as_it_is(
    make_architecture: Callable[..., Architecture], cifar: Task
) -> None:
    network = started(make_architecture(stem="convolution"), cifar)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    whiten(network, torch.rand(2, 3, 32, 32))

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

import random
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from spaces.architecture import (
    Activation,
    Architecture,
    Family,
    Head,
    Initialization,
    Norm,
    Pooling,
    Stage,
    Stem,
)
from spaces.augmentation import early_pixels
from spaces.networks.blocks import WhiteningConvolution, build_stage, build_stem
from spaces.networks.builders import BUILDERS, build_network
from spaces.networks.initialization import initialize
from spaces.task import Task

SIZES = (4, 5, 7, 8, 9, 28, 32, 47, 48, 49, 64, 97, 224, 225, 512)


def random_architecture(source: random.Random) -> Architecture:
    stages = tuple(
        Stage(
            width=source.choice([3, 8, 12]),
            kernel_size=source.choice([3, 5, 7]),
            n_convolutions=source.choice([1, 2, 3]),
        )
        for _ in range(source.choice([1, 2, 4]))
    )
    return Architecture(
        family=source.choice(get_args(Family)),
        stem=source.choice(get_args(Stem)),
        stem_width=source.choice([5, 16]),
        stages=stages,
        pooling=source.choice(get_args(Pooling)),
        norm=source.choice(get_args(Norm)),
        activation=source.choice(get_args(Activation)),
        head=source.choice(get_args(Head)),
        dropout=0.1,
        initialization=source.choice(get_args(Initialization)),
        logit_scale=1 / 9,
    )


def n_trained(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_every_image_size_gives_finite_logits_and_gradients(size: int, channels: int) -> None:
    source = random.Random(size * channels)  # noqa: S311
    architecture = random_architecture(source)
    network = build_network(architecture, Task(image_size=size, channels=channels, n_classes=5))
    initialize(network, architecture, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, channels, size, size, generator=generator)

    logits = network(images)
    logits.square().sum().backward()

    assert logits.shape == (3, 5)
    assert logits.isfinite().all()
    for weight in network.parameters():
        assert (weight.grad is not None and bool(weight.grad.isfinite().all())) == (
            weight.requires_grad
        )


@pytest.mark.parametrize("stem", get_args(Stem))
@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_networks_take_the_images_of_early_steps(
    make_architecture: Callable[..., Architecture], stem: Stem, pooling: Pooling
) -> None:
    # As deep as images allow, since each stage wants two pixels to halve.
    stages = (Stage(width=4, kernel_size=3, n_convolutions=1),) * 8
    architecture = replace(make_architecture(stem=stem, pooling=pooling), stages=stages)
    for size in (*range(4, 52), *range(62, 70), *range(94, 102), *range(126, 134), 192, 193, 224):
        network = build_network(architecture, Task(image_size=size, channels=1, n_classes=2))
        pixels = early_pixels(0.5, size)

        assert network(torch.zeros(2, 1, pixels, pixels)).shape == (2, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stem", get_args(Stem))
def test_the_stem_and_the_stages_leave_the_size_they_tell(
    make_architecture: Callable[..., Architecture], stem: Stem, size: int, channels: int
) -> None:
    task = Task(image_size=size, channels=channels, n_classes=2)
    for pooling in get_args(Pooling):
        architecture = make_architecture(stem=stem, pooling=pooling)
        module, width, told = build_stem(architecture, task)

        features = module(torch.zeros(1, channels, size, size))
        assert features.shape == (1, width, told, told)
        assert told <= 48

        for stage in (*architecture.stages, *architecture.stages):
            before = told
            part, told = build_stage(architecture, stage, width, told, residual=False)
            width = stage.width
            features = part(features)
            assert features.shape == (1, width, told, told)
            assert told >= 2
            assert (told < before) == (before >= 4)


@pytest.mark.parametrize(
    ("size", "channels", "filters", "kernel", "left"),
    [
        (32, 3, 24, 2, 31),
        (28, 1, 8, 2, 27),
        (64, 3, 48, 4, 31),
        (128, 3, 96, 4, 32),
        (224, 3, 96, 8, 28),
    ],
)
def test_the_whitening_stem_grows_its_stride_with_the_images(
    make_architecture: Callable[..., Architecture],
    size: int,
    channels: int,
    filters: int,
    kernel: int,
    left: int,
) -> None:
    task = Task(image_size=size, channels=channels, n_classes=2)

    stem, width, told = build_stem(make_architecture(stem="whitening"), task)

    assert (width, told) == (filters, left)
    assert isinstance(stem[0], WhiteningConvolution)
    assert stem[0].kernel_size == (kernel, kernel)
    assert not stem[0].weight.requires_grad
    assert stem[0].bias is not None
    assert stem[0].bias.requires_grad


def test_pooling_comes_before_norm_and_activation(
    make_architecture: Callable[..., Architecture],
) -> None:
    architecture = make_architecture()

    stage, _ = build_stage(architecture, architecture.stages[0], 4, 32, residual=False)

    assert isinstance(stage, nn.Sequential)
    assert [type(layer) for layer in stage] == [
        nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU,
        nn.Conv2d, nn.BatchNorm2d, nn.ReLU,
    ]  # fmt: skip


@pytest.mark.parametrize("norm", get_args(Norm))
def test_a_convolution_has_a_bias_only_where_no_norm_follows(
    make_architecture: Callable[..., Architecture], cifar: Task, norm: Norm
) -> None:
    network = build_network(make_architecture(norm=norm), cifar)

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]

    assert {layer.bias is not None for layer in convolutions} == {norm == "none"}


def test_the_count_of_trained_weights_is_the_one_worked_out_by_hand(
    make_architecture: Callable[..., Architecture], cifar: Task
) -> None:
    network = build_network(make_architecture(stem="whitening", n_stages=1), cifar)

    stem, convolutions, biases, linear = 24, 24 * 8 * 9 + 8 * 8 * 9, 2 * 8, 8 * 10
    assert n_trained(network) == stem + convolutions + biases + linear


def test_a_residual_stage_adds_its_input_to_its_later_convolutions(
    make_architecture: Callable[..., Architecture],
) -> None:
    architecture = make_architecture(norm="none", n_convolutions=3)
    stage, _ = build_stage(architecture, architecture.stages[0], 8, 16, residual=True)
    features = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    convolutions = [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)]
    for convolution in convolutions[1:]:
        for weight in convolution.parameters():
            nn.init.zeros_(weight)

    expected = nn.functional.max_pool2d(convolutions[0](features), 2).relu()

    torch.testing.assert_close(stage(features), expected)


def test_families_differ_only_where_a_stage_has_a_second_convolution(
    make_architecture: Callable[..., Architecture], cifar: Task
) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    same = {}
    for n_convolutions in (1, 2):
        logits = []
        for family in BUILDERS:
            architecture = make_architecture(family=family, n_convolutions=n_convolutions)
            network = build_network(architecture, cifar)
            initialize(network, architecture, torch.Generator().manual_seed(0))
            logits.append(network(images))
        same[n_convolutions] = torch.equal(logits[0], logits[1])

    assert same == {1: True, 2: False}


def test_global_pooling_of_group_norm_still_tells_images_apart(
    make_architecture: Callable[..., Architecture], cifar: Task
) -> None:
    architecture = make_architecture(norm="group", n_convolutions=1)
    network = build_network(architecture, cifar)
    initialize(network, architecture, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    logits = network(torch.randn(8, 3, 32, 32, generator=generator))

    assert logits.std(dim=0).mean() > 0.01


def test_the_logit_scale_multiplies_the_logits(
    make_architecture: Callable[..., Architecture], digits: Task
) -> None:
    architecture = make_architecture()
    network = build_network(architecture, digits).eval()
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    once = network(images)

    scaled = build_network(replace(architecture, logit_scale=0.25), digits).eval()
    scaled.load_state_dict(network.state_dict())

    torch.testing.assert_close(scaled(images), 0.25 * once)


def test_weights_round_trip_through_plain_tensors_of_their_own(cifar: Task) -> None:
    source = random.Random(3)  # noqa: S311
    for _ in range(10):
        architecture = random_architecture(source)
        network = build_network(architecture, cifar)
        plain = {name: value.clone() for name, value in network.state_dict().items()}
        again = build_network(architecture, cifar)

        again.load_state_dict(plain, strict=True)

        storages = [value.data_ptr() for value in again.state_dict().values()]
        assert len(set(storages)) == len(storages)
        for name, value in again.state_dict().items():
            assert torch.equal(value, plain[name])


def test_memory_format_does_not_change_the_logits(
    make_architecture: Callable[..., Architecture], cifar: Task
) -> None:
    network = build_network(make_architecture(stem="whitening"), cifar).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = network(images)

    last = network.to(memory_format=torch.channels_last)
    logits = last(images.to(memory_format=torch.channels_last))

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)

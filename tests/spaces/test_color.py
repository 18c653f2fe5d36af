from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from spaces import color

Adjust = Callable[[Tensor, Tensor], Tensor]
Reference = Callable[[Tensor, float], Tensor]


def random_images(n: int, channels: int, *, size: int = 16) -> Tensor:
    shape = (n, channels, size, size)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("adjust", "expected"),
    [
        (color.adjust_brightness, reference.adjust_brightness),
        (color.adjust_contrast, reference.adjust_contrast),
        (color.adjust_saturation, reference.adjust_saturation),
        (color.adjust_sharpness, reference.adjust_sharpness),
    ],
)
def test_each_image_is_changed_by_its_own_factor_as_torchvision_does(
    adjust: Adjust, expected: Reference, channels: int
) -> None:
    images = random_images(4, channels)
    factors = [0.0, 0.3, 1.0, 1.9]

    changed = adjust(images, torch.tensor(factors))

    for image, result, factor in zip(images, changed, factors, strict=True):
        torch.testing.assert_close(
            result, expected(image / 255, factor) * 255, atol=2e-3, rtol=1e-4
        )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_factor_of_one_changes_nothing(memory: torch.memory_format, channels: int) -> None:
    images = random_images(3, channels).to(memory_format=memory)

    for adjust in (
        color.adjust_brightness,
        color.adjust_contrast,
        color.adjust_saturation,
        color.adjust_sharpness,
    ):
        torch.testing.assert_close(adjust(images, torch.ones(3)), images)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_posterizing_is_torchvisions(bits: int) -> None:
    images = random_images(2, 3)

    changed = color.posterize(images, torch.full((2,), float(bits)))

    assert torch.equal(changed, reference.posterize(images.byte(), bits).float())


@pytest.mark.parametrize("threshold", [0.0, 100.0, 255.0])
def test_solarizing_is_torchvisions(threshold: float) -> None:
    images = random_images(2, 3)

    changed = color.solarize(images, torch.full((2,), threshold))

    assert torch.equal(changed, reference.solarize(images.byte(), threshold).float())


@pytest.mark.parametrize("channels", [1, 3])
def test_autocontrast_is_torchvisions_and_leaves_flat_channels_alone(channels: int) -> None:
    images = random_images(3, channels) / 2 + 30
    images[1, 0] = 77.0

    changed = color.autocontrast(images)

    torch.testing.assert_close(
        changed, reference.autocontrast(images / 255) * 255, atol=2e-3, rtol=1e-4
    )
    assert torch.equal(changed[1, 0], images[1, 0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 48])
def test_equalizing_is_torchvisions(channels: int, size: int) -> None:
    images = (random_images(3, channels, size=size) / 3 + 20).round()
    images[1, 0] = 77.0

    changed = color.equalize(images)

    assert torch.equal(changed, reference.equalize(images.byte()).float())


def test_jitter_of_no_strength_changes_nothing() -> None:
    images = random_images(3, 3)

    torch.testing.assert_close(color.jitter(images, 0.0, torch.Generator()), images)


def test_jitter_of_gray_images_is_brightness_and_contrast() -> None:
    images = random_images(200, 1, size=4)
    source = torch.Generator().manual_seed(5)

    changed = color.jitter(images, 0.5, source)

    factors = 0.5 + torch.rand(3, 200, generator=torch.Generator().manual_seed(5))
    expected = color.adjust_contrast(color.adjust_brightness(images, factors[0]), factors[1])
    torch.testing.assert_close(changed, expected)

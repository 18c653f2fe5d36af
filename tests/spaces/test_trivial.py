import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from spaces.geometry import warp
from spaces.trivial import (
    OPERATIONS,
    Operations,
    adjust_randomly,
    draw_operations,
    operation_matrices,
)

SIZE = 16


def random_images(n: int, *, channels: int = 3) -> Tensor:
    shape = (n, channels, SIZE, SIZE)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).float()


def all_alike(name: str, *, share: float, sign: float = 1.0, n: int = 2) -> Operations:
    return Operations(
        number=torch.full((n,), OPERATIONS.index(name)),
        share=torch.full((n,), share),
        sign=torch.full((n,), sign),
    )


def moved_by_torchvision(images: Tensor, name: str, amount: float) -> Tensor:
    settings: dict[str, object] = {"angle": 0.0, "translate": [0, 0], "shear": [0.0, 0.0]}
    if name.startswith("shear"):
        degrees = math.degrees(math.atan(0.99 * amount))
        settings["shear"] = [degrees, 0.0] if name == "shear_x" else [0.0, degrees]
        settings["center"] = [0, 0]
    elif name.startswith("translate"):
        pixels = int(32 * amount)
        settings["translate"] = [pixels, 0] if name == "translate_x" else [0, pixels]
    else:
        settings["angle"] = 135.0 * amount
    moved: Tensor = reference.affine(
        images, scale=1.0, interpolation=reference.InterpolationMode.BILINEAR, **settings
    )
    return moved


@pytest.mark.parametrize("amount", [0.1, -0.3, 0.4])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_geometry_is_that_of_the_wide_space_inside_the_frame(name: str, amount: float) -> None:
    images = random_images(2)
    operations = all_alike(name, share=abs(amount), sign=math.copysign(1.0, amount))

    warped = warp(images, operation_matrices(operations, size=SIZE))

    inside = moved_by_torchvision(torch.ones_like(images), name, amount) > 0.9999
    expected = moved_by_torchvision(images, name, amount)
    assert inside.float().mean() > 0.15
    torch.testing.assert_close(warped[inside], expected[inside], atol=0.02, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_colors_are_those_of_the_wide_space(share: float, sign: float, channels: int) -> None:
    images = random_images(2, channels=channels)
    factor = 1 + 0.99 * share * sign
    pixels, bytes_ = images / 255, images.byte()
    expected = {
        "identity": images,
        "rotate": images,
        "brightness": reference.adjust_brightness(pixels, factor) * 255,
        "color": reference.adjust_saturation(pixels, factor) * 255,
        "contrast": reference.adjust_contrast(pixels, factor) * 255,
        "sharpness": reference.adjust_sharpness(pixels, factor) * 255,
        "posterize": reference.posterize(bytes_, round(8 - 6 * share)).float(),
        "solarize": reference.solarize(bytes_, 255 * (1 - share)).float(),
        "autocontrast": reference.autocontrast(pixels) * 255,
        "equalize": reference.equalize(bytes_).float(),
    }

    for name, wanted in expected.items():
        changed = adjust_randomly(images, all_alike(name, share=share, sign=sign))

        torch.testing.assert_close(changed, wanted, atol=2e-3, rtol=1e-4)


def test_each_image_gets_its_own_operation() -> None:
    images = random_images(3)
    numbers = [OPERATIONS.index(name) for name in ("solarize", "identity", "equalize")]
    operations = Operations(
        number=torch.tensor(numbers), share=torch.full((3,), 0.5), sign=torch.ones(3)
    )

    changed = adjust_randomly(images, operations)

    assert torch.equal(changed[0], torch.where(images[0] >= 127.5, 255 - images[0], images[0]))
    assert torch.equal(changed[1], images[1])
    assert torch.equal(changed[2], reference.equalize(images[2].byte()).float())


def test_all_operations_and_strengths_are_drawn_about_equally_often() -> None:
    operations = draw_operations(28_000, torch.Generator().manual_seed(0))

    assert operations.number.bincount().min() > 1800
    assert operations.number.bincount().max() < 2200
    assert len(OPERATIONS) == 14
    assert len(operations.share.unique()) == 31
    assert (float(operations.share.min()), float(operations.share.max())) == (0.0, 1.0)
    assert operations.sign.unique().tolist() == [-1.0, 1.0]

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from spaces.augmentation import NO_AUGMENTATION
from spaces.geometry import affine_matrices, random_matrices, warp


def random_images(n: int, *, channels: int = 3, size: int = 16) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 255


def by_torchvision(image: Tensor, *, rotation: float, scale: float, shear: float) -> Tensor:
    moved: Tensor = reference.affine(
        image,
        angle=rotation,
        translate=[0, 0],
        scale=scale,
        shear=[shear, 0.0],
        interpolation=reference.InterpolationMode.BILINEAR,
    )
    return moved


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("rotation", "scale", "shear"),
    [(30.0, 1.0, 0.0), (0.0, 0.8, 0.0), (0.0, 1.3, 0.0), (0.0, 1.0, 15.0), (-20.0, 1.2, -10.0)],
)
def test_moved_images_are_those_of_torchvision_inside_the_frame(
    rotation: float, scale: float, shear: float, channels: int
) -> None:
    images = random_images(4, channels=channels)
    matrices = affine_matrices(*(torch.full((4,), value) for value in (rotation, scale, shear)))

    warped = warp(images, matrices)

    expected = by_torchvision(images, rotation=rotation, scale=scale, shear=shear)
    ones = torch.ones_like(images)
    inside = by_torchvision(ones, rotation=rotation, scale=scale, shear=shear) > 0.9999
    assert inside.float().mean() > 0.4
    torch.testing.assert_close(warped[inside], expected[inside], atol=0.02, rtol=1e-4)


def test_a_quarter_turn_is_exact_and_clockwise() -> None:
    images = random_images(2)
    turn, same = torch.full((2,), 90.0), torch.ones(2)

    warped = warp(images, affine_matrices(turn, same, same - 1))

    torch.testing.assert_close(warped, images.rot90(-1, (2, 3)), atol=0.01, rtol=1e-4)


def test_what_was_outside_is_filled_by_reflection() -> None:
    image = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4).contiguous()
    matrix = torch.eye(3)[None].clone()
    matrix[0, 0, 2] = 2.0

    warped = warp(image, matrix)

    torch.testing.assert_close(warped[0, 0, 0], torch.tensor([2.0, 3.0, 3.0, 2.0]))


def test_images_whose_matrix_is_the_identity_are_left_alone() -> None:
    images = random_images(3)
    matrices = torch.eye(3).repeat(3, 1, 1)
    matrices[1, 0, 1] = 0.3

    warped = warp(images, matrices)

    assert torch.equal(warped[::2], images[::2])
    assert not torch.equal(warped[1], images[1])
    assert warp(images, torch.eye(3).repeat(3, 1, 1)) is images


def test_zero_strengths_draw_no_matrices() -> None:
    assert random_matrices(5, NO_AUGMENTATION, torch.Generator()) is None


def test_drawn_rotations_fill_their_range() -> None:
    source = torch.Generator().manual_seed(0)

    matrices = random_matrices(4000, replace(NO_AUGMENTATION, rotation=25.0), source)

    assert matrices is not None
    degrees = torch.atan2(matrices[:, 0, 1], matrices[:, 0, 0]).rad2deg()
    assert degrees.min() < -24.5
    assert degrees.max() > 24.5
    assert degrees.abs().max() <= 25.001
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(4000))


def test_drawn_scales_stay_above_nothing() -> None:
    source = torch.Generator().manual_seed(0)

    matrices = random_matrices(4000, replace(NO_AUGMENTATION, scale=1.0), source)

    assert matrices is not None
    scales = 1 / matrices[:, 0, 0]
    assert 0.099 < float(scales.min()) < 0.12
    assert 1.98 < float(scales.max()) < 2.001

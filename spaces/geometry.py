"""Rotation, scale and shear of a whole batch by one `grid_sample`."""

import torch
from jaxtyping import Float, Float32
from torch import Generator, Tensor
from torch.nn import functional as F

from spaces.augmentation import Augmentation
from spaces.transfer import send

Matrices = Float32[Tensor, "n 3 3"]
"""Where each pixel of the new image comes from: homogeneous (x, y), in pixels from the center."""

_SMALLEST_SCALE = 0.1


def random_matrices(n: int, augmentation: Augmentation, generator: Generator) -> Matrices | None:
    """Draw a rotation, a scale and a horizontal shear for each image, as v2.RandomAffine does.

    Returns:
        One matrix for each image, on the CPU; None if the augmentation asks for no such change,
        and then nothing is drawn.
    """
    strengths = augmentation.rotation, augmentation.scale, augmentation.shear
    if not any(strengths):
        return None
    draws = torch.rand(3, n, generator=generator) * 2 - 1
    rotation, scale, shear = (
        strength * drawn for strength, drawn in zip(strengths, draws, strict=True)
    )
    return affine_matrices(rotation, (1 + scale).clamp(min=_SMALLEST_SCALE), shear)


def affine_matrices(
    rotation: Float32[Tensor, " n"], scale: Float32[Tensor, " n"], shear: Float32[Tensor, " n"]
) -> Matrices:
    """Return the matrices of `torchvision.transforms.v2.functional.affine`.

    Args:
        rotation: Clockwise, in degrees.
        scale: Factor of the size, above 0.
        shear: Horizontal, in degrees.
    """
    angle, tangent = rotation.deg2rad(), shear.deg2rad().tan()
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    matrices = torch.eye(3).repeat(len(rotation), 1, 1)
    matrices[:, 0, 0] = cosine - sine * tangent
    matrices[:, 0, 1] = sine + cosine * tangent
    matrices[:, 1, 0] = -sine
    matrices[:, 1, 1] = cosine
    return matrices


def warp(
    images: Float[Tensor, "n c size size"], matrices: Matrices
) -> Float[Tensor, "n c size size"]:
    """Move the pixels of each image, bilinearly; what was outside is filled by reflection.

    Args:
        images: Square images in any memory format.
        matrices: One for each image, on the CPU; an image whose matrix is the identity is left
            alone, bit for bit.
    """
    moved = (matrices != torch.eye(3)).flatten(1).any(1).nonzero().view(-1)
    if len(moved) == 0:
        return images
    rows = send(moved, images.device)
    chosen = images if len(moved) == len(images) else images[rows]
    grid = _sampling_grid(matrices[moved], images.shape[-1], images.device)
    warped = F.grid_sample(chosen, grid, padding_mode="reflection", align_corners=False)
    if len(moved) == len(images):
        return warped
    return images.index_copy(0, rows, warped)


def _sampling_grid(
    matrices: Matrices, size: int, device: torch.device
) -> Float32[Tensor, "n size size 2"]:
    """Return where each pixel comes from, on the scale of `grid_sample`: the frame is -1 to 1.

    By one sum for each pixel, x and y in planes of their own; `affine_grid` multiplies matrices,
    which takes 30 times longer and as long as the sampling itself.
    """
    steps = (2 * torch.arange(size, device=device) + 1) / size - 1
    by_x, by_y, shift = (send(matrices[:, :2, column, None], device) for column in range(3))
    rows = by_y * steps + shift * (2 / size)
    return ((by_x * steps)[:, :, None, :] + rows[:, :, :, None]).permute(0, 2, 3, 1)

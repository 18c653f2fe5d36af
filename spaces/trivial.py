"""TrivialAugment for a whole batch: one random operation of random strength for each image.

Source:
    Mueller and Hutter 2021, "TrivialAugment: tuning-free yet state-of-the-art data augmentation",
    the wide space, as in v2.TrivialAugmentWide. Unlike there, geometry is bilinear and filled by
    reflection, and all images that move are moved by one `grid_sample`; the others are grouped by
    operation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Generator, Tensor

from spaces import color
from spaces.geometry import Matrices, affine_matrices
from spaces.transfer import send

Images = Float[Tensor, "n c h w"]
Strengths = Float32[Tensor, " n"]

_N_STRENGTHS = 31
_LARGEST_SHIFT = 32
_LARGEST_ROTATION = 135.0
_LARGEST_CHANGE = 0.99

# Geometry is applied to all images at once by `operation_matrices`, so it has no function here.
_COLOR: Mapping[str, Callable[[Images, Strengths, Strengths], Images]] = {
    "brightness": lambda images, _, signed: color.adjust_brightness(images, 1 + signed),
    "color": lambda images, _, signed: color.adjust_saturation(images, 1 + signed),
    "contrast": lambda images, _, signed: color.adjust_contrast(images, 1 + signed),
    "sharpness": lambda images, _, signed: color.adjust_sharpness(images, 1 + signed),
    "posterize": lambda images, share, _: color.posterize(images, (8 - 6 * share).round()),
    "solarize": lambda images, share, _: color.solarize(images, 255 * (1 - share)),
    "autocontrast": lambda images, _, __: color.autocontrast(images),
    "equalize": lambda images, _, __: color.equalize(images),
}
_GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS = ("identity", *_GEOMETRY, *_COLOR)


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What happens to each image of a batch; on the CPU."""

    number: Int64[Tensor, " n"]
    """Which of `OPERATIONS`."""
    share: Float32[Tensor, " n"]
    """Strength from 0 to 1."""
    sign: Float32[Tensor, " n"]
    """1 or -1, for the operations that have two directions."""


def draw_operations(n: int, generator: Generator) -> Operations:
    """Draw one operation, one of 31 strengths and a direction for each of `n` images."""
    return Operations(
        number=torch.randint(len(OPERATIONS), (n,), generator=generator),
        share=torch.randint(_N_STRENGTHS, (n,), generator=generator) / (_N_STRENGTHS - 1),
        sign=torch.randint(2, (n,), generator=generator) * 2.0 - 1,
    )


def operation_matrices(operations: Operations, *, size: int) -> Matrices:
    """Return how each image moves: the identity for those whose operation is not geometry."""
    amount = operations.share * operations.sign

    def amount_of(name: str) -> Float32[Tensor, " n"]:
        return amount * (operations.number == OPERATIONS.index(name))

    zeros = torch.zeros_like(amount)
    matrices = affine_matrices(_LARGEST_ROTATION * amount_of("rotate"), zeros + 1, zeros)
    shear_x = _LARGEST_CHANGE * amount_of("shear_x")
    shear_y = _LARGEST_CHANGE * amount_of("shear_y")
    matrices[:, 0, 1] += shear_x
    matrices[:, 1, 0] += shear_y
    # The upper left corner stays where it is in a shear; shifts are whole pixels.
    matrices[:, 0, 2] = shear_x * size / 2 - (_LARGEST_SHIFT * amount_of("translate_x")).trunc()
    matrices[:, 1, 2] = shear_y * size / 2 - (_LARGEST_SHIFT * amount_of("translate_y")).trunc()
    return matrices


def adjust_randomly(images: Images, operations: Operations) -> Images:
    """Apply the operations on color, one group of images after the other."""
    changed = images.clone(memory_format=torch.preserve_format)
    signed = _LARGEST_CHANGE * operations.share * operations.sign
    for name, apply in _COLOR.items():
        rows = (operations.number == OPERATIONS.index(name)).nonzero().view(-1)
        if len(rows):
            there, share, signed_there = (
                send(tensor, images.device)
                for tensor in (rows, operations.share[rows], signed[rows])
            )
            changed[there] = apply(images[there], share, signed_there)
    return changed

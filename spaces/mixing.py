"""Mixup and cutmix: each image of a batch takes a share of the next one."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from spaces.augmentation import Augmentation


@dataclass(frozen=True, kw_only=True)
class MixedBatch:
    """Images with two labels each; the loss is `share` of the first and the rest of the second."""

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    other_labels: Int64[Tensor, " n"]
    share: float


def mix(
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    augmentation: Augmentation,
    generator: Generator,
) -> MixedBatch:
    """Mix the images of a batch as the augmentation says, in place where it can.

    Args:
        images: A shuffled batch.
        labels: Their classes.
        augmentation: `mixing` and its `mixing_alpha`.
        generator: On the CPU.
    """
    if augmentation.mixing == "none":
        return MixedBatch(images=images, labels=labels, other_labels=labels, share=1.0)
    share = draw_share(augmentation.mixing_alpha, generator)
    if augmentation.mixing == "mixup":
        mixed = mix_up(images, share)
    else:
        x, y = torch.rand(2, generator=generator).tolist()
        mixed, share = cut_mix(images, share, center=(x, y))
    return MixedBatch(images=mixed, labels=labels, other_labels=labels.roll(1), share=share)


def split_batch(batch: MixedBatch, n_parts: int) -> list[MixedBatch]:
    """Cut a mixed batch into parts of equal size, or as equal as they can be.

    Args:
        batch: At least `n_parts` images.
        n_parts: How many parts there shall be.
    """
    parts = zip(
        batch.images.tensor_split(n_parts),
        batch.labels.tensor_split(n_parts),
        batch.other_labels.tensor_split(n_parts),
        strict=True,
    )
    return [
        MixedBatch(images=images, labels=labels, other_labels=others, share=batch.share)
        for images, labels, others in parts
    ]


def draw_share(alpha: float, generator: Generator) -> float:
    """Draw from Beta(alpha, alpha); torch's own Beta takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def mix_up(images: Float[Tensor, "n c h w"], share: float) -> Float[Tensor, "n c h w"]:
    """Blend each image with the one before it, the first with the last.

    Source:
        Zhang et al. 2018, "mixup: beyond empirical risk minimization"; as in v2.MixUp, one share
        for the whole batch.
    """
    return torch.lerp(images.roll(1, 0), images, share)


def cut_mix(
    images: Float[Tensor, "n c h w"], share: float, *, center: tuple[float, float]
) -> tuple[Float[Tensor, "n c h w"], float]:
    """Paste a rectangle of the image before into each image, in place.

    Args:
        images: The batch.
        share: Area that each image keeps if the rectangle lies within it.
        center: Of the rectangle (x, y), as shares of width and height; it is cut at the border.

    Returns:
        The images, and the share that each one really keeps.

    Source:
        Yun et al. 2019, "CutMix"; as in v2.CutMix, one rectangle for the whole batch.
    """
    height, width = images.shape[2:]
    half = 0.5 * math.sqrt(1 - share)
    left, right = _cut(int(center[0] * width), int(half * width), width)
    top, bottom = _cut(int(center[1] * height), int(half * height), height)
    pasted = images[:, :, top:bottom, left:right].roll(1, 0)
    images[:, :, top:bottom, left:right] = pasted
    return images, 1 - (bottom - top) * (right - left) / (height * width)


def _cut(center: int, half: int, size: int) -> tuple[int, int]:
    """Return first and last + 1 of a line around a center, within the image."""
    return max(0, center - half), min(size, center + half)

"""Padded images as the store holds them, for tests that have no store."""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


def pad_images(
    images: UInt8[Tensor, "n h w c"], pad: int
) -> UInt8[Tensor, "n padded_h padded_w c"]:
    """Surround images by their reflection, `pad` pixels on each side."""
    _, height, width, _ = images.shape
    rows, columns = (
        _reflect(torch.arange(-pad, size + pad, device=images.device), size)
        for size in (height, width)
    )
    return images[:, rows][:, :, columns]


def _reflect(positions: Int64[Tensor, " n"], size: int) -> Int64[Tensor, " n"]:
    """Return where each position comes from, the border pixels not repeated."""
    if size == 1:
        return torch.zeros_like(positions)
    period = 2 * (size - 1)
    folded = positions.remainder(period)
    return torch.minimum(folded, period - folded)

"""Whole-batch augmentation: from rows of the image store to normalized batches.

The images stay on their device and no Python loop visits one image. The random draws, a few
numbers for each image, come from a generator on the CPU: so one seed gives the same batches on
every device, and images can be grouped by operation without waiting for a GPU.

The order is crop and mirror (in the index of the gather), geometry (one `grid_sample`), policy,
color jitter, normalization, erasing. What leaves the frame is filled by reflection throughout, as
in the padded store: a black corner would teach the network the operation.
"""

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F

from spaces.augmentation import Augmentation, Flip
from spaces.color import jitter
from spaces.geometry import random_matrices, warp
from spaces.transfer import send
from spaces.trivial import adjust_randomly, draw_operations, operation_matrices


def normalize(
    images: UInt8[Tensor, "n h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "n c h w"]:
    """Make pixels the input of a network.

    Args:
        images: Pixels from 0 to 255.
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel, on the same scale.

    Returns:
        Float32 images in channels_last memory: a view, the pixels are converted but not moved.
    """
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    n, height, width, channels = pixels.shape
    center, factor = _center_and_factor(mean, std, pixels.device)
    # Line by line: with the channels alone in the inner loop this takes 7 times longer.
    lines = pixels.view(n * height, width * channels)
    lines.sub_(center.repeat(width)).mul_(factor.repeat(width))
    return pixels.permute(0, 3, 1, 2)


def draw_flips(
    flip: Flip, sides: Bool[Tensor, " n"], *, epoch: int, generator: Generator
) -> Bool[Tensor, " n"]:
    """Choose which images of a batch are shown in the mirror.

    Args:
        flip: `alternating` shows each image as its side says in even epochs, the other way round
            in odd ones: two epochs show both versions of every image once (Jordan 2024, section
            3.6). `random` is a coin for each image.
        sides: One random bit for each image, fixed for the whole training.
        epoch: Counted from 0.
        generator: On the CPU.
    """
    if flip == "alternating":
        return sides ^ bool(epoch % 2)
    if flip == "random":
        return torch.rand(len(sides), generator=generator) < 0.5
    return torch.zeros(len(sides), dtype=torch.bool)


def crop(
    store: UInt8[Tensor, "images padded padded c"],
    rows: Int64[Tensor, " n"],
    mirrored: Bool[Tensor, " n"],
    *,
    pad: int,
    shift: int,
    generator: Generator,
) -> UInt8[Tensor, "n h w c"]:
    """Gather rows of the padded store, each one shifted and mirrored on the way.

    Args:
        store: Images with `pad` pixels of reflection around them.
        rows: Which images, on the device of the store.
        mirrored: Which of them to show in the mirror, on the CPU.
        pad: Pixels to leave out on each side, at a shift of 0.
        shift: Largest shift in each direction, in pixels; the padding limits it.
        generator: On the CPU.

    Returns:
        The images without their padding.
    """
    padded, channels = store.shape[2:]
    size, shift = padded - 2 * pad, min(shift, pad)
    down, right = torch.randint(pad - shift, pad + shift + 1, (2, len(rows)), generator=generator)
    steps = torch.arange(size)
    columns = torch.where(mirrored[:, None], size - 1 - steps, steps) + right[:, None]
    # Whole lines first, then bytes within the lines: an index for each pixel is 1.4 times slower,
    # and at 224 px would take more memory than the images.
    starts = (rows * padded)[:, None] + send(down[:, None] + steps, store.device)
    lines = store.view(-1, padded * channels).index_select(0, starts.view(-1))
    offsets = (columns[:, :, None] * channels + torch.arange(channels)).view(len(rows), 1, -1)
    offsets = send(offsets, store.device).expand(-1, size, -1)
    gathered = lines.view(len(rows), size, -1).gather(2, offsets)
    return gathered.view(len(rows), size, size, channels)


def augment(
    images: UInt8[Tensor, "n h w c"],
    augmentation: Augmentation,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: Generator,
) -> Float[Tensor, "n c h w"]:
    """Vary a batch in all ways but crop, mirror and mixing, and normalize it.

    Args:
        images: Pixels from 0 to 255.
        augmentation: What may happen to them; what is switched off draws nothing.
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        generator: On the CPU.
    """
    varied = _vary(images, augmentation, mean, std, generator)
    if varied is None:
        varied = normalize(images, mean, std)
    return erase(varied, augmentation.erasing, generator)


def shrink(images: Float[Tensor, "n c size size"], size: int) -> Float[Tensor, "n c _ _"]:
    """Make images smaller, as v2.Resize does: bilinearly, with antialiasing."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def erase(
    images: Float[Tensor, "n c size size"], share: float, generator: Generator
) -> Float[Tensor, "n c size size"]:
    """Set one square of each normalized image to 0, the mean color, in place.

    Args:
        images: Normalized images.
        share: Side of the square, as a share of the image size; it lies within the image.
        generator: On the CPU.

    Source:
        DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with
        cutout". Unlike there, the square never reaches over the edge.
    """
    size = images.shape[-1]
    side = round(share * size)
    if side == 0:
        return images
    starts = torch.randint(size - side + 1, (2, len(images), 1), generator=generator)
    steps = torch.arange(size)
    down, right = (steps >= starts) & (steps < starts + side)
    kept = ~(down[:, None, :, None] & right[:, None, None, :])
    # 2 to 12 times faster than `masked_fill_`.
    return images.mul_(send(kept, images.device).to(images.dtype))


def _vary(
    images: UInt8[Tensor, "n h w c"],
    augmentation: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: Generator,
) -> Float[Tensor, "n c h w"] | None:
    """Vary geometry and color, then normalize; None where there is nothing to vary."""
    n, size = images.shape[:2]
    matrices = random_matrices(n, augmentation, generator)
    operations = draw_operations(n, generator) if augmentation.policy == "trivial" else None
    if matrices is None and operations is None and augmentation.jitter == 0:
        return None
    # Channel by channel: colors are twice as fast so, and `grid_sample` returns it anyway.
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if operations is not None:
        moved = operation_matrices(operations, size=size)
        matrices = moved if matrices is None else matrices @ moved
    if matrices is not None:
        pixels = warp(pixels, matrices)
    if operations is not None:
        pixels = adjust_randomly(pixels, operations)
    if augmentation.jitter > 0:
        pixels = jitter(pixels, augmentation.jitter, generator)
    center, factor = _center_and_factor(mean, std, pixels.device)
    pixels = pixels.sub_(center.view(-1, 1, 1)).mul_(factor.view(-1, 1, 1))
    return pixels.contiguous(memory_format=torch.channels_last)


def _center_and_factor(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Return what to subtract from each channel of pixels up to 255, and then to multiply by."""
    center = torch.tensor([255 * value for value in mean])
    factor = torch.tensor([1 / (255 * value) for value in std])
    return send(center, device), send(factor, device)

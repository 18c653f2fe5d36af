"""Changes of color of a whole batch, with a strength for each image.

All take and return float pixels from 0 to 255 in images of 1 or 3 channels, and mean what the
functions of the same names in `torchvision.transforms.v2.functional` mean.
"""

import torch
from jaxtyping import Float, Float32
from torch import Generator, Tensor
from torch.nn import functional as F

from spaces.transfer import send

Images = Float[Tensor, "n c h w"]
Strengths = Float32[Tensor, " n"]

_GRAY = (0.2989, 0.587, 0.114)


def jitter(images: Images, strength: float, generator: Generator) -> Images:
    """Change brightness, contrast and saturation by factors from 1 - strength to 1 + strength.

    Unlike v2.ColorJitter, which draws an order for each call, the order is always the same.
    """
    factors = 1 + strength * (torch.rand(3, len(images), generator=generator) * 2 - 1)
    brightness, contrast, saturation = send(factors, images.device)
    brightened = adjust_brightness(images, brightness)
    return adjust_saturation(adjust_contrast(brightened, contrast), saturation)


def adjust_brightness(images: Images, factors: Strengths) -> Images:
    """Multiply the pixels; 0 is black."""
    return (images * _wide(factors)).clamp_(0, 255)


def adjust_contrast(images: Images, factors: Strengths) -> Images:
    """Blend each image with its mean gray; 0 is flat gray."""
    return _blend(images, to_gray(images).mean((1, 2, 3), keepdim=True), factors)


def adjust_saturation(images: Images, factors: Strengths) -> Images:
    """Blend each image with its gray version; an image of one channel stays as it is."""
    if images.shape[1] == 1:
        return images
    return _blend(images, to_gray(images), factors)


def adjust_sharpness(images: Images, factors: Strengths) -> Images:
    """Blend each image with a blurred version; the border stays as it is."""
    if min(images.shape[2:]) < 3:
        return images
    # The kernel has 1/13 around 5/13: nine times the mean of 3x3 and four times the pixel.
    blurred = images.clone(memory_format=torch.preserve_format)
    middle = blurred[:, :, 1:-1, 1:-1]
    middle.mul_(4 / 13).add_(F.avg_pool2d(images, 3, stride=1), alpha=9 / 13)
    return _blend(images, blurred, factors)


def posterize(images: Images, bits: Strengths) -> Images:
    """Keep the leading bits of each pixel."""
    step = _wide(2 ** (8 - bits))
    return (images / step).floor_().mul_(step)


def solarize(images: Images, thresholds: Strengths) -> Images:
    """Invert the pixels from a threshold on."""
    return torch.where(images >= _wide(thresholds), 255 - images, images)


def autocontrast(images: Images) -> Images:
    """Stretch each channel to the full range."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high == low
    stretched = (images - low).mul_(255 / (high - low).masked_fill_(flat, 255))
    return torch.where(flat, images, stretched.clamp_(0, 255))


def equalize(images: Images) -> Images:
    """Spread the values of each channel evenly; works on whole pixel values."""
    pixels = images.round().long().flatten(2)
    ones = torch.ones((), dtype=torch.long, device=images.device).expand_as(pixels)
    counts = pixels.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels, ones)
    cumulated = counts.cumsum(2)
    # Pillow's rule: the brightest value that occurs does not count.
    n_brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - n_brightest) // 255
    table = (cumulated + step // 2) // step.clamp(min=1)
    table = F.pad(table[:, :, :-1], (1, 0)).clamp_(0, 255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table)
    return table.gather(2, pixels).view_as(images).to(images.dtype)


def to_gray(images: Images) -> Float[Tensor, "n 1 h w"]:
    """Return the brightness of each pixel."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    gray: Tensor = red * _GRAY[0] + green * _GRAY[1] + blue * _GRAY[2]
    return gray


def _blend(images: Images, others: Float[Tensor, "n _ _ _"], factors: Strengths) -> Images:
    """Return `factors` of the image and the rest of the other, within the range of pixels."""
    return torch.lerp(others.expand_as(images), images, _wide(factors)).clamp_(0, 255)


def _wide(strengths: Strengths) -> Float32[Tensor, "n 1 1 1"]:
    return strengths.view(-1, 1, 1, 1)

"""How the training images of one trial are varied."""

import math
from dataclasses import dataclass
from typing import Literal

from spaces.errors import SpaceError
from spaces.strict import STRICT

Flip = Literal["none", "random", "alternating"]
Mixing = Literal["none", "mixup", "cutmix"]
Policy = Literal["none", "trivial"]

EARLY_STEPS = 0.4
"""Share of a schedule whose steps are early. What is left before the middle, from where on most
pruners compare trials, lets the network get used to whole images."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to a training image before the network sees it; 0 and `none` switch off."""

    __pydantic_config__ = STRICT

    flip: Flip
    """Left to right; `alternating` shows each image and its mirror in turn, epoch by epoch."""
    crop: float
    """Largest shift of a crop from the reflect-padded image, as a share of its size."""
    rotation: float
    """Largest rotation, in degrees."""
    scale: float
    """Largest relative change of size (0.2: from 0.8 to 1.2)."""
    shear: float
    """Largest shear, in degrees."""
    jitter: float
    """Strength of the change of brightness, contrast and saturation, from 0 to 1."""
    erasing: float
    """Side of an erased square, as a share of the image size."""
    policy: Policy
    """`trivial`: one random operation for each image (TrivialAugment)."""
    mixing: Mixing
    mixing_alpha: float
    """Both parameters of the Beta distribution that draws the share of the second image."""
    early_size: float = 1.0
    """Side of the images in the early steps of a schedule, as a share of the image size, from 0.5
    (see `early_pixels`); 1, as in recipes that do not say, is off."""

    def __post_init__(self) -> None:
        """Refuse strengths out of range."""
        for name in ("crop", "jitter", "erasing", "scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpaceError(
                    f"augmentation.{name} must be in [0, 1], got {getattr(self, name)}."
                )
        for name in ("rotation", "shear"):
            if not 0 <= getattr(self, name) <= 180:
                raise SpaceError(
                    f"augmentation.{name} must be from 0 to 180 degrees, "
                    f"got {getattr(self, name)}."
                )
        if self.mixing != "none" and self.mixing_alpha <= 0:
            raise SpaceError(
                f"augmentation.mixing_alpha must be above 0, got {self.mixing_alpha}."
            )
        if not 0.5 <= self.early_size <= 1:
            raise SpaceError(
                f"augmentation.early_size must be in [0.5, 1], got {self.early_size}."
            )


NO_AUGMENTATION = Augmentation(
    flip="none",
    crop=0.0,
    rotation=0.0,
    scale=0.0,
    shear=0.0,
    jitter=0.0,
    erasing=0.0,
    policy="none",
    mixing="none",
    mixing_alpha=1.0,
)
"""Images as they are; to begin with where some changes alone are wanted."""


def is_early(n_steps_done: int, n_steps: int) -> bool:
    """Tell whether the next step of a schedule is early; the last one never is."""
    return (n_steps_done + 1) / n_steps <= EARLY_STEPS


def early_pixels(early_size: float, image_size: int) -> int:
    """Return the side, in pixels, of the images in the early steps of a schedule.

    A little more than half at the least: a stage that halves whole images to 2 pixels must find
    2 pixels in small ones.
    """
    return min(image_size, max(math.ceil(early_size * image_size), image_size // 2 + 2))

"""How the training images of one trial are varied."""

from dataclasses import dataclass
from typing import Literal

from spaces.errors import SpaceError
from spaces.strict import STRICT

Flip = Literal["none", "random", "alternating"]
Mixing = Literal["none", "mixup", "cutmix"]
Policy = Literal["none", "trivial"]


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

"""What a network expects of a picture; the same record serves training, export and predict."""

from dataclasses import dataclass
from typing import Literal

from ensembles.errors import EnsembleError

Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How a picture becomes a square of pixels, and how its pixels become numbers."""

    size: int
    """Height and width in pixels."""
    channels: int
    """1: grey; 3: RGB."""
    fit: Fit = "crop"
    """How a picture that is not square becomes one; `crop` and `pad` keep the aspect."""
    mean: tuple[float, ...] = ()
    """Mean of each channel over the training images, for pixels from 0 to 1."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel, on the same scale."""

    def __post_init__(self) -> None:
        """Refuse sizes that no picture has."""
        if self.size < 4 or self.channels not in (1, 3):
            raise EnsembleError(
                "an input needs a size of at least 4 and 1 or 3 channels, "
                f"got {self.size} and {self.channels}."
            )

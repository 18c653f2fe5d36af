"""What a recipe must know of the images before it can be chosen or built."""

from dataclasses import dataclass

from spaces.errors import SpaceError


@dataclass(frozen=True, kw_only=True)
class Task:
    """The shape of one classification problem."""

    image_size: int
    """Height and width of the square images, in pixels."""
    channels: int
    """1 for grey images, 3 for RGB."""
    n_classes: int
    """Number of classes, at least 2."""

    def __post_init__(self) -> None:
        """Refuse problems that no network accepts."""
        if self.image_size < 4:
            raise SpaceError(f"image_size must be at least 4 pixels, got {self.image_size}.")
        if self.channels not in (1, 3):
            raise SpaceError(f"channels must be 1 or 3, got {self.channels}.")
        if self.n_classes < 2:
            raise SpaceError(f"n_classes must be at least 2, got {self.n_classes}.")

"""What every reader of images returns: names, labels and a way to each picture."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64, UInt8

from ensembles.images import Source
from search.errors import DataError

Given = Literal["none", "train", "val", "test"]
"""What the user's own split says of an image; `none`: nothing."""

GIVEN: tuple[Given, ...] = get_args(Given)
"""An image's given role is stored as its place in this table."""

SPLIT_NAMES: dict[str, Given] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What people call their splits, in lower case."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """A data set before any picture is decoded."""

    source: str
    """What the user typed, for messages."""
    names: Sequence[str]
    """One for each image: a path relative to the source, or split and row."""
    labels: Int64[np.ndarray, " images"]
    """Places in `class_names`."""
    class_names: tuple[str, ...]
    given: UInt8[np.ndarray, " images"]
    """Places in `GIVEN`."""
    groups: Int64[np.ndarray, " images"] | None = None
    """Images with the same number stay in the same role; none: each image for itself."""
    signature: str
    """Changes whenever the pictures may have changed."""
    load: Callable[[int], Source]
    """From an image's place to something that `load_image` takes."""

    def __post_init__(self) -> None:
        """Refuse an empty listing."""
        if not len(self.names):
            raise DataError(f"{self.source}: no images.")

    def check_trainable(self) -> None:
        """Refuse what nobody can learn from.

        Raises:
            DataError: There are fewer than two classes, or one without images to train on.
        """
        counts = self._counts("none") + self._counts("train")
        present = [name for name, count in zip(self.class_names, counts, strict=True) if count]
        for given in ("val", "test"):
            strangers = self._counts(given) * (counts == 0)
            if strangers.any() and present:
                stranger = self.class_names[int(strangers.argmax())]
                raise DataError(
                    f"{self.source}: class {stranger!r} is in {given} but not in train, "
                    f"which has {shortened(present)}; every class needs images to train on."
                )
        if len(present) < 2:
            only = f"only one class, {present[0]!r}" if present else "no images to train on"
            raise DataError(f"{self.source}: {only}; a search needs at least 2 classes.")
        if len(present) < len(self.class_names):
            missing = self.class_names[int(counts.argmin())]
            raise DataError(
                f"{self.source}: class {missing!r} has no images to train on; "
                "add some, or remove the class."
            )

    def _counts(self, given: Given) -> Int64[np.ndarray, " classes"]:
        chosen = self.labels[self.given == GIVEN.index(given)]
        return np.bincount(chosen, minlength=len(self.class_names))


def shortened(names: Sequence[str], *, longest: int = 8) -> str:
    """Join names for a message; of many, only the first.

    >>> shortened(["a", "b", "c"], longest=2)
    'a, b ... (3 in all)'
    """
    shown = ", ".join(names[:longest])
    return shown if len(names) <= longest else f"{shown} ... ({len(names)} in all)"


def digest(*parts: str | bytes | np.ndarray) -> str:
    """Return a hash of texts, bytes and arrays, in this order."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            whole.update(f"{part.dtype.str} {part.shape} ".encode())
            if part.size:
                whole.update(np.ascontiguousarray(part).data.cast("B"))
        else:
            data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
            whole.update(f"{len(data)} ".encode())
            whole.update(data)
    return whole.hexdigest()

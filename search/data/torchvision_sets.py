"""Data sets by their torchvision names, from a folder on disk or by download.

torchvision is imported only when one of them is asked for: it takes seconds. Its classes are
used as they are; what differs between them (how splits are called, where labels stand) is in the
one table below.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from search.data.listing import GIVEN, Given, Listing, digest
from search.errors import DataError

DEFAULT_ROOT = Path("~/.cache/concertino/datasets")


@dataclass(frozen=True)
class TorchvisionSet:
    """One class of `torchvision.datasets`."""

    class_name: str
    splits: Mapping[Given, Mapping[str, object]]
    """Arguments that select each split."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Arguments that are the same for all splits."""


_BOTH: Mapping[Given, Mapping[str, object]] = {"train": {"train": True}, "test": {"train": False}}
_TWO: Mapping[Given, Mapping[str, object]] = {
    "train": {"split": "train"},
    "test": {"split": "test"},
}
_THREE: Mapping[Given, Mapping[str, object]] = {**_TWO, "val": {"split": "val"}}
_WHOLE: Mapping[Given, Mapping[str, object]] = {"none": {}}

SETS: Mapping[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet("CIFAR10", _BOTH),
    "cifar100": TorchvisionSet("CIFAR100", _BOTH),
    "dtd": TorchvisionSet("DTD", _THREE),
    "emnist": TorchvisionSet("EMNIST", _BOTH, {"split": "balanced"}),
    "eurosat": TorchvisionSet("EuroSAT", _WHOLE),
    "fashion-mnist": TorchvisionSet("FashionMNIST", _BOTH),
    "fgvc-aircraft": TorchvisionSet("FGVCAircraft", _THREE),
    "flowers102": TorchvisionSet("Flowers102", _THREE),
    "food101": TorchvisionSet("Food101", _TWO),
    "gtsrb": TorchvisionSet("GTSRB", _TWO),
    "imagenette": TorchvisionSet(
        "Imagenette", {"train": {"split": "train"}, "test": {"split": "val"}}, {"size": "160px"}
    ),
    "kmnist": TorchvisionSet("KMNIST", _BOTH),
    "mnist": TorchvisionSet("MNIST", _BOTH),
    "oxford-iiit-pet": TorchvisionSet(
        "OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}
    ),
    "qmnist": TorchvisionSet("QMNIST", _BOTH),
    "semeion": TorchvisionSet("SEMEION", _WHOLE),
    "stl10": TorchvisionSet("STL10", _TWO),
    "svhn": TorchvisionSet("SVHN", _TWO),
    "usps": TorchvisionSet("USPS", _BOTH),
}
"""Names that `--data` takes, and what torchvision calls them."""


def read_torchvision(name: str, *, root: Path | None, download: bool) -> Listing:
    """List a data set that torchvision knows.

    Args:
        name: A key of `SETS`.
        root: Folder in which torchvision's own folder or files of the set lie; default:
            `DEFAULT_ROOT`.
        download: Whether to fetch what is not there.

    Returns:
        The images, with torchvision's splits as given roles.

    Raises:
        DataError: The set is not there, or cannot be downloaded.
    """
    folder = (root or DEFAULT_ROOT).expanduser()
    parts = {
        split: _open_set(name, folder, arguments, download=download)
        for split, arguments in SETS[name].splits.items()
    }
    lengths = [len(part) for part in parts.values()]
    sets, ends = list(parts.values()), np.cumsum(lengths)

    def load(index: int) -> Image.Image:
        part = int(np.searchsorted(ends, index, side="right"))
        picture: Image.Image = sets[part][index - int(ends[part] - lengths[part])][0]
        return picture

    labels = np.concatenate([_labels(part) for part in sets])
    return Listing(
        source=name,
        names=[f"{split}/{row:06d}" for split, part in parts.items() for row in range(len(part))],
        labels=labels,
        class_names=_class_names(sets[0], n_classes=int(labels.max(initial=0)) + 1),
        given=np.repeat([GIVEN.index(split) for split in parts], lengths).astype(np.uint8),
        signature=digest(name, *(_content(part) for part in sets)),
        load=load,
    )


def _open_set(name: str, root: Path, arguments: Mapping[str, object], *, download: bool) -> Any:
    """Make the data set's object; torchvision has no common type with labels."""
    known = SETS[name]
    make: Callable[..., Sized] = getattr(
        importlib.import_module("torchvision.datasets"), known.class_name
    )
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
        return make(root, download=download, **known.options, **arguments)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        if download:
            raise DataError(f"{name} could not be downloaded to {root}: {reason}") from error
        raise DataError(
            f"{name} is not in {root}; add --download, or --data-root FOLDER where it lies."
        ) from error


def _labels(part: Any) -> np.ndarray:
    """Return the labels, wherever this class keeps them."""
    for attribute in ("_labels", "targets", "labels"):
        if hasattr(part, attribute):
            labels = np.asarray(getattr(part, attribute), dtype=np.int64)
            return labels[:, 0] if labels.ndim == 2 else labels  # QMNIST has 8 columns
    return np.array([label for _, label in part._samples], dtype=np.int64)


def _class_names(part: Any, *, n_classes: int) -> tuple[str, ...]:
    """Return the names of the classes; their numbers where torchvision has no names."""
    known: Sequence[object] = getattr(part, "classes", None) or range(n_classes)
    names = [name[0] if isinstance(name, tuple) else name for name in known]
    return tuple(str(name) for name in names)


def _content(part: Any) -> str:
    """Return a hash of the pixels, or of names, sizes and times of the files."""
    if hasattr(part, "data"):
        return digest(np.asarray(part.data))
    for attribute in ("_image_files", "_images", "_samples", "samples"):
        if hasattr(part, attribute):
            files = [
                item[0] if isinstance(item, tuple) else item for item in getattr(part, attribute)
            ]
            stamps = [os.stat(file) for file in files]  # noqa: PTH116 - many of them
            return digest(
                "\n".join(map(str, files)),
                np.array([(status.st_size, status.st_mtime_ns) for status in stamps]),
            )
    raise DataError(
        f"{type(part).__name__}: this version of torchvision keeps its files elsewhere."
    )

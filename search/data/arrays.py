"""Images in arrays: `.npz` files in the two usual customs, and the embedded digits.

Keras names its arrays `x_train, y_train, x_test, y_test`, MedMNIST `train_images, train_labels,
val_images, ...`; both are read, and `x, y` or `images, labels` where nothing is split. Pixels
must be `uint8`: floats may mean 0 to 1, 0 to 255 or standardized, and a guess would be silent.
Headers are read first, so a data set that is decoded already is never unpacked again.
"""

import importlib
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from search.data.listing import GIVEN, Given, Listing, digest, shortened
from search.errors import DataError

CUSTOMS: tuple[tuple[str, str, Given], ...] = (
    ("x_train", "y_train", "train"),
    ("x_val", "y_val", "val"),
    ("x_valid", "y_valid", "val"),
    ("x_test", "y_test", "test"),
    ("train_images", "train_labels", "train"),
    ("val_images", "val_labels", "val"),
    ("test_images", "test_labels", "test"),
    ("x", "y", "none"),
    ("images", "labels", "none"),
)
"""Names of images and labels, and the role that the names give them."""

Shape: TypeAlias = tuple[int, ...]


def read_digits() -> Listing:
    """List scikit-learn's handwritten digits: 1797 grey images of 8 x 8 pixels."""
    # Imported by name: scikit-learn takes a second, and only the digits need it.
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return Listing(
        source="digits",
        names=[f"digits/{row:04d}" for row in range(len(images))],
        labels=bunch.target.astype(np.int64),
        class_names=tuple(str(name) for name in bunch.target_names),
        given=np.zeros(len(images), dtype=np.uint8),
        signature=digest(images),
        load=lambda index: images[index],
    )


def read_arrays(path: Path) -> Listing:
    """List the images of an `.npz` file.

    Args:
        path: The file; its arrays are named as in `CUSTOMS`. Images are `uint8`, (n, h, w),
            (n, h, w, c) or (n, c, h, w); labels are whole numbers or texts, (n,) or (n, 1);
            `class_names`, if there, names the classes in the order of their numbers.

    Returns:
        The images; pixels are read when the first of them is asked for.

    Raises:
        DataError: Arrays are missing, have another type or shape, or do not fit together.
    """
    shapes = _read_headers(path)
    splits = [custom for custom in CUSTOMS if custom[0] in shapes]
    if not splits:
        raise DataError(
            f"{path}: no images; found arrays {shortened(sorted(shapes))}, expected "
            "x_train and y_train, or train_images and train_labels."
        )
    labels, names, given, loaders = [], [], [], []
    for images_key, labels_key, split in splits:
        channels_first = _check_images(path, images_key, *shapes[images_key])
        n_images = shapes[images_key][0][0]
        labels.append(_read_labels(path, labels_key, n_images))
        names += [f"{images_key}/{row:06d}" for row in range(n_images)]
        given.append(np.full(n_images, GIVEN.index(split), dtype=np.uint8))
        loaders.append(_reader(path, images_key, channels_first=channels_first))
    codes, class_names = _classes(path, np.concatenate(labels), "class_names" in shapes)
    status = path.stat()
    return Listing(
        source=str(path),
        names=names,
        labels=codes,
        class_names=class_names,
        given=np.concatenate(given),
        signature=digest(str(path.resolve()), f"{status.st_size} {status.st_mtime_ns}"),
        load=_one_after_the_other(loaders, [len(part) for part in labels]),
    )


def _read_headers(path: Path) -> Mapping[str, tuple[Shape, np.dtype]]:
    """Return shape and type of each array."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                member.removesuffix(".npy"): _read_header(path, archive, member)
                for member in archive.namelist()
                if member.endswith(".npy")
            }
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a whole .npz file: {error}.") from error


def _read_header(path: Path, archive: zipfile.ZipFile, member: str) -> tuple[Shape, np.dtype]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    if dtype.hasobject:
        raise DataError(
            f"{path}: {member.removesuffix('.npy')} holds Python objects, which could run code; "
            "save it as an array of numbers or texts."
        )
    return shape, dtype


def _check_images(path: Path, key: str, shape: Shape, dtype: np.dtype) -> bool:
    """Refuse what are no pixels; return whether the channels come before height and width."""
    if dtype != np.uint8:
        hint = "; pixels from 0 to 1 become so by (255 * x).round().astype('uint8')"
        raise DataError(
            f"{path}: {key} must be uint8, got {dtype}{hint if dtype.kind == 'f' else ''}."
        )
    last = len(shape) == 4 and shape[3] in (1, 3, 4)
    first = len(shape) == 4 and shape[1] in (1, 3, 4)
    if len(shape) not in (3, 4) or 0 in shape[1:] or (len(shape) == 4 and not (first or last)):
        raise DataError(f"{path}: {key} must be (n, h, w) or (n, h, w, channels), got {shape}.")
    if first and last:
        raise DataError(
            f"{path}: {key} is {shape}, where the channels may come first or last; "
            "save it as (n, h, w, channels), with h and w above 4."
        )
    return first


def _read_array(path: Path, key: str) -> np.ndarray:
    try:
        # Opened here: NumPy does not close a damaged file that it opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[key]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {key} cannot be read: {error}.") from error
    return array


def _read_labels(path: Path, key: str, n_images: int) -> np.ndarray:
    try:
        labels = _read_array(path, key)
    except KeyError as error:
        raise DataError(f"{path}: no labels {key!r} beside the images.") from error
    if labels.shape not in ((n_images,), (n_images, 1)) or labels.dtype.kind not in "iuU":
        raise DataError(
            f"{path}: {key} must be one whole number or text for each of the {n_images} images, "
            f"got {labels.dtype} {labels.shape}."
        )
    return labels.reshape(n_images)


def _classes(path: Path, labels: np.ndarray, named: bool) -> tuple[np.ndarray, tuple[str, ...]]:  # noqa: FBT001
    """Number the classes from 0."""
    if not named:
        present, codes = np.unique(labels, return_inverse=True)
        return codes.astype(np.int64), tuple(str(label) for label in present)
    names = tuple(str(name) for name in _read_array(path, "class_names").ravel())
    if labels.dtype.kind == "U":
        place = {name: code for code, name in enumerate(names)}
        strangers = sorted(set(labels.tolist()) - set(place))
        codes = np.array([place.get(label, 0) for label in labels.tolist()], dtype=np.int64)
    else:
        outside = (labels < 0) | (labels >= len(names))
        strangers = sorted({str(label) for label in labels[outside]})
        codes = labels.astype(np.int64)
    if strangers:
        raise DataError(
            f"{path}: labels {shortened(strangers)} are not among the {len(names)} class_names."
        )
    return codes, names


def _reader(path: Path, key: str, *, channels_first: bool) -> Callable[[int], np.ndarray]:
    """Return a function that unpacks the array once, whichever thread asks first."""
    lock = threading.Lock()
    unpacked: list[np.ndarray] = []

    def load(index: int) -> np.ndarray:
        with lock:
            if not unpacked:
                images = _read_array(path, key)
                unpacked.append(np.moveaxis(images, 1, 3) if channels_first else images)
        return np.ascontiguousarray(unpacked[0][index])

    return load


def _one_after_the_other(
    loaders: list[Callable[[int], np.ndarray]], lengths: list[int]
) -> Callable[[int], np.ndarray]:
    ends = np.cumsum(lengths)

    def load(index: int) -> np.ndarray:
        part = int(np.searchsorted(ends, index, side="right"))
        return loaders[part](index - int(ends[part] - lengths[part]))

    return load

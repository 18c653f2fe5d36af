"""Predictions that other programs wrote: a folder of arrays, one archive, or one long table.

Nothing is unpickled. What the numbers are is told from the numbers, since a softmax has a sum of 1
and nothing else has; but models that differ in it are an error, not a guess.
"""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np

from ensembles.errors import EnsembleError
from ensembles.ordering import natural_order

Kind = Literal["probabilities", "log_probabilities", "logits"]

SUM_TOLERANCE = 0.02
"""Half-precision rounding moves a row's sum by less than 0.01; logits miss 1 by far more."""

NEGATIVE_TOLERANCE = 1e-6
"""A probability that rounding brought below 0 by at most this is 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredPredictions:
    """What a file holds, as `Pool.from_arrays` wants it."""

    models: Mapping[str, np.ndarray]
    """One (images, classes) array per model, by name."""
    labels: np.ndarray
    kind: Kind | None = None
    """None: to be told from the numbers."""
    class_names: tuple[str, ...] | None = None
    costs: np.ndarray | None = None


def read_folder(folder: Path) -> StoredPredictions:
    """Read a folder of one .npy per model, labels.npy and, if there is one, classes.txt.

    Args:
        folder: The files' names, without .npy, are the models' names; classes.txt has one class
            name on each line.

    Returns:
        The arrays, not yet checked against each other.

    Raises:
        EnsembleError: There are no labels or no models, or an array cannot be read.
    """
    files = sorted(folder.glob("*.npy"), key=lambda file: natural_order(file.stem))
    arrays = {file.stem: _load_array(file) for file in files}
    labels = arrays.pop("labels", None)
    if labels is None or not arrays:
        found = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise EnsembleError(
            f"a folder of predictions needs labels.npy and one .npy for each model, got {found}."
        )
    classes = folder / "classes.txt"
    lines = _read_lines(classes) if classes.is_file() else []
    names = tuple(line.strip() for line in lines if line.strip())
    return StoredPredictions(models=arrays, labels=labels, class_names=names or None)


def read_archive(path: Path) -> StoredPredictions:
    """Read a .npz: arrays of all models in one, or one array for each model.

    Args:
        path: Holds `labels`; either `probabilities`, `log_probabilities` or `logits` of shape
            (models, images, classes), with `names` if there are any, or one (images, classes)
            array per model under its name; and `class_names` and `costs` if there are any.

    Returns:
        The arrays, not yet checked against each other.

    Raises:
        EnsembleError: An array is missing, cannot be read, or is one too many.
    """
    arrays = _load_archive(path)
    listed = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
    labels = arrays.pop("labels", None)
    class_names, costs, names = (
        arrays.pop(name, None) for name in ("class_names", "costs", "names")
    )
    kind: Kind | None = next((each for each in get_args(Kind) if each in arrays), None)
    if labels is None or not arrays or (kind is not None and len(arrays) > 1):
        raise EnsembleError(
            "an archive of predictions needs labels and either one of probabilities, "
            "log_probabilities and logits for all models or one array for each model, "
            f"got {listed}."
        )
    models = arrays if kind is None else _split_models(kind, arrays[kind], names)
    if kind is None and names is not None:
        raise EnsembleError(
            "names belong to one array of all models; arrays of one model are named by "
            f"themselves, got {listed}."
        )
    return StoredPredictions(
        kind=kind,
        models=models,
        labels=labels,
        class_names=None if class_names is None else tuple(map(str, class_names.tolist())),
        costs=costs,
    )


def tell_kind(models: Mapping[str, np.ndarray]) -> Kind:
    """Tell from the numbers what models predicted.

    Args:
        models: One (images, classes) array per model, by name.

    Returns:
        `probabilities`, if those of each image sum to 1; `log_probabilities`, if their
        exponentials do; else `logits`.

    Raises:
        EnsembleError: The models differ in it.
    """
    kinds = {
        name: _tell(model)
        for name, model in models.items()
        if (_as_float(model) < np.inf).all()  # not NaN; the logarithm of 0 tells as much as others
    }
    first = next(iter(kinds), None)
    if first is None:
        return "logits"
    for name, kind in kinds.items():
        if kind != kinds[first]:
            raise EnsembleError(
                f"the predictions of model {first} look like {kinds[first]}, those of model "
                f"{name} like {kind}; all must be of one kind."
            )
    return kinds[first]


def _split_models(
    kind: Kind, array: np.ndarray, names: np.ndarray | None
) -> dict[str, np.ndarray]:
    if array.ndim != 3:
        raise EnsembleError(
            f"{kind} of all models need the shape (models, images, classes), got {array.shape}."
        )
    known = [str(number) for number in range(len(array))]
    if names is not None:
        known = [str(name) for name in names.tolist()]
    if len(set(known)) != len(array):
        raise EnsembleError(
            f"{len(array)} models need as many different names, got {', '.join(known)}."
        )
    return dict(zip(known, array, strict=True))


def _tell(model: np.ndarray) -> Kind:
    values = _as_float(model)
    if values.min() >= -NEGATIVE_TOLERANCE and _sums_to_one(values):
        return "probabilities"
    if values.max() <= SUM_TOLERANCE and _sums_to_one(np.exp(values)):
        return "log_probabilities"
    return "logits"


def _as_float(model: np.ndarray) -> np.ndarray:
    if model.size == 0 or model.ndim == 0 or not np.issubdtype(model.dtype, np.number):
        raise EnsembleError(
            f"predictions must be arrays of numbers, got shape {model.shape} of {model.dtype}."
        )
    return model.astype(np.float32)


def _sums_to_one(values: np.ndarray) -> bool:
    return bool((np.abs(values.sum(axis=-1) - 1) <= SUM_TOLERANCE).all())


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EnsembleError(f"{path.name} must be text in UTF-8: {error}.") from error


def _load_array(path: Path) -> np.ndarray:
    with _readable(path) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _load_archive(path: Path) -> dict[str, np.ndarray]:
    with _readable(path) as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in sorted(archive.files, key=natural_order)}


@contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    """Open a file, which NumPy itself leaves open if it is no archive, and name what is wrong."""
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EnsembleError(f"{path.name} cannot be read without unpickling: {error}.") from error

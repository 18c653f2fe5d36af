"""What many models predict for the same images: the one input of every ensemble method.

All probabilities are kept as logarithms, because two of the methods average there and because a
product of small numbers is only safe there. A logarithm below -30 says no more than "never",
and one image with -80 would decide every fit, so all values are clipped at -30.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from ensembles.errors import EnsembleError
from ensembles.pool_files import (
    NEGATIVE_TOLERANCE,
    SUM_TOLERANCE,
    Kind,
    StoredPredictions,
    read_archive,
    read_folder,
    tell_kind,
)
from ensembles.pool_tables import read_csv, read_parquet

MIN_LOG_PROBABILITY = -30.0
MIN_TRUE_CLASS_PROBABILITY = 1e-7
"""Floor of `Pool.true_class`: a mixture of such models loses at most 16 nats on one image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Predictions of several models for the same labelled images; `from_arrays` checks them."""

    log_probabilities: Float32[np.ndarray, "models images classes"]
    """Natural logarithms, normalized over the classes, clipped at -30."""
    labels: Int64[np.ndarray, " images"]
    """The true class of each image."""
    names: tuple[str, ...]
    """One name for each model, such as its trial number; no two alike."""
    costs: Float[np.ndarray, " models"]
    """Relative cost of one prediction, above 0."""
    class_names: tuple[str, ...]
    """In the order of the classes."""

    @classmethod
    def from_arrays(  # noqa: PLR0913 - three spellings of the same argument
        cls,
        *,
        labels: np.ndarray | Sequence[int],
        probabilities: np.ndarray | Sequence[np.ndarray] | None = None,
        log_probabilities: np.ndarray | Sequence[np.ndarray] | None = None,
        logits: np.ndarray | Sequence[np.ndarray] | None = None,
        names: Iterable[object] | None = None,
        costs: Sequence[float] | np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "Pool":
        """Check, normalize and clip predictions, given in exactly one of three forms.

        Args:
            labels: The true class of each image, from 0.
            probabilities: (models, images, classes), or one (images, classes) array per model.
            log_probabilities: The same, as natural logarithms; that of 0 is -inf.
            logits: The same, before softmax.
            names: One per model, such as its number; default "0", "1", ...
            costs: One per model; default 1.
            class_names: One per class; default "0", "1", ...

        Returns:
            The pool.

        Raises:
            EnsembleError: The arrays do not fit together, or hold values that no model predicts.
        """
        given: dict[Kind, np.ndarray | Sequence[np.ndarray] | None] = {
            "probabilities": probabilities,
            "log_probabilities": log_probabilities,
            "logits": logits,
        }
        forms = [(kind, values) for kind, values in given.items() if values is not None]
        if len(forms) != 1:
            raise EnsembleError(
                "a pool needs exactly one of probabilities, log_probabilities and logits, "
                f"got {len(forms)}."
            )
        kind, values = forms[0]
        models = _as_models(values)
        n_images, n_classes = models[0].shape
        model_names = _unique_names(names, len(models), "model")
        return cls(
            log_probabilities=np.stack(
                [
                    _to_log_probabilities(model, kind, name)
                    for model, name in zip(models, model_names, strict=True)
                ]
            ),
            labels=_checked_labels(labels, n_images=n_images, n_classes=n_classes),
            names=model_names,
            costs=_checked_costs(costs, len(models)),
            class_names=_unique_names(class_names, n_classes, "class"),
        )

    @classmethod
    def load(cls, path: Path | str, *, kind: Kind | None = None) -> "Pool":
        """Read predictions that any program wrote.

        Args:
            path: One of

                - a folder of one .npy of shape (images, classes) for each model, labels.npy and,
                  for names of the classes, classes.txt with one on each line;
                - a .npz with `labels` and one array (images, classes) for each model, or one
                  array `probabilities`, `log_probabilities` or `logits` of shape (models, images,
                  classes) with `names`; and `class_names` and `costs`, if there are any;
                - a .csv or .parquet table with the columns `model`, `image`, `label` and one for
                  each class, and a row for each model and image; a label is the name of a
                  class's column, or its place from 0. Parquet needs the extra
                  `concertino[parquet]`.
            kind: What the numbers are; None: told from the numbers.

        Returns:
            The pool; the models in the natural order of their names, unless they come in one
            array.

        Raises:
            EnsembleError: There is no such file, it cannot be read, or its parts do not fit
                together.
        """
        source = Path(path)
        try:
            stored = _read(source)
            return cls.from_arrays(
                labels=stored.labels,
                names=tuple(stored.models),
                class_names=stored.class_names,
                costs=stored.costs,
                **{_agree_on_kind(stored, kind): list(stored.models.values())},
            )
        except EnsembleError as error:
            raise EnsembleError(f"{source}: {error}") from error

    @property
    def n_models(self) -> int:
        """Number of models."""
        return len(self.names)

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def select(self, indices: Sequence[int] | Int[np.ndarray, " chosen"]) -> "Pool":
        """Return the pool of some of the models, in the order asked for."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Pool(
            log_probabilities=self.log_probabilities[chosen],
            labels=self.labels,
            names=tuple(self.names[index] for index in chosen),
            costs=self.costs[chosen],
            class_names=self.class_names,
        )

    def select_names(self, names: Sequence[str]) -> "Pool":
        """Return the pool of the models with these names, in the order asked for.

        Raises:
            EnsembleError: A name is not in the pool.
        """
        positions = {name: index for index, name in enumerate(self.names)}
        missing = [name for name in names if name not in positions]
        if missing:
            raise EnsembleError(f"the pool holds no predictions of {', '.join(missing)}.")
        return self.select([positions[name] for name in names])

    def average(self, groups: Mapping[str, Sequence[str]], *, geometrically: bool) -> "Pool":
        """Return the pool of means of some of the models.

        Args:
            groups: For each name of the new pool, the models that it is the mean of.
            geometrically: Average logarithms instead of probabilities.

        Raises:
            EnsembleError: A model is not in the pool.
        """
        parts = [self.select_names(names) for names in groups.values()]
        logarithms = [part.log_probabilities.astype(np.float64) for part in parts]
        return Pool.from_arrays(
            log_probabilities=[
                normalize_log_probabilities(
                    each.mean(axis=0) if geometrically else np.log(np.exp(each).mean(axis=0))
                )
                for each in logarithms
            ],
            labels=self.labels,
            names=tuple(groups),
            costs=[float(part.costs.sum()) for part in parts],
            class_names=self.class_names,
        )

    def select_images(self, rows: Int[np.ndarray, " chosen"]) -> "Pool":
        """Return the pool of some of the images."""
        return Pool(
            log_probabilities=self.log_probabilities[:, rows],
            labels=self.labels[rows],
            names=self.names,
            costs=self.costs,
            class_names=self.class_names,
        )

    def true_class(self) -> Float32[np.ndarray, "models images"]:
        """Return each model's probability of the true class, at least 1e-7."""
        probabilities: np.ndarray = np.exp(self._true_log_probabilities())
        np.maximum(probabilities, MIN_TRUE_CLASS_PROBABILITY, out=probabilities)
        return probabilities

    def log_losses(self) -> Float[np.ndarray, " models"]:
        """Return each model's mean log-loss, in nats."""
        means: np.ndarray = -self._true_log_probabilities().mean(axis=1, dtype=np.float64)
        return means

    def _true_log_probabilities(self) -> Float32[np.ndarray, "models images"]:
        # NumPy lays this result out image by image; what follows reads it model by model.
        return np.ascontiguousarray(
            self.log_probabilities[:, np.arange(self.n_images), self.labels]
        )


def normalize_log_probabilities(
    values: Float[np.ndarray, "*shape classes"],
) -> Float[np.ndarray, "*shape classes"]:
    """Make logits or nearly normalized logarithms sum to one, none below -30.

    The same function prepares a pool and, in a bundle, what its members predict: so both see
    the same numbers.
    """
    wide = values.astype(np.promote_types(values.dtype, np.float32))
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    np.maximum(wide, MIN_LOG_PROBABILITY, out=wide)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def split_in_folds(
    labels: Int[np.ndarray, " images"], *, n_folds: int, seed: int
) -> Int64[np.ndarray, " images"]:
    """Give each image a fold from 0, so that each fold holds its share of every class."""
    shuffle = np.random.default_rng(seed).random(len(labels))
    folds = np.empty(len(labels), dtype=np.int64)
    folds[np.lexsort((shuffle, labels))] = np.arange(len(labels)) % n_folds
    return folds


_READERS: Mapping[str, Callable[[Path], StoredPredictions]] = {
    ".npz": read_archive,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def _read(path: Path) -> StoredPredictions:
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise EnsembleError("there is no such file or folder.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise EnsembleError(
            f"predictions come in a folder or as {', '.join(_READERS)}, "
            f"got {path.suffix or 'a name without ending'}."
        )
    return reader(path)


def _agree_on_kind(stored: StoredPredictions, asked: Kind | None) -> Kind:
    if asked is not None and asked not in get_args(Kind):
        raise EnsembleError(f"kind must be one of {', '.join(get_args(Kind))}, got {asked!r}.")
    if asked is not None and stored.kind not in (None, asked):
        raise EnsembleError(f"the file holds {stored.kind}, {asked} were asked for.")
    return asked or stored.kind or tell_kind(stored.models)


def _as_models(values: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    if getattr(values, "ndim", None) == 2:
        raise EnsembleError(
            f"one array of shape {tuple(np.shape(values))} is one model; give it as [array]."
        )
    try:
        models = [np.asarray(model) for model in values]
    except (TypeError, ValueError) as error:
        raise EnsembleError(
            "predictions must be one array (models, images, classes) or a list of one array "
            f"(images, classes) for each model, got {type(values).__name__}: {error}."
        ) from error
    if not models:
        raise EnsembleError("a pool needs at least one model, got none.")
    for model in models:
        if model.ndim != 2 or model.shape[0] < 1 or model.shape[1] < 2:
            raise EnsembleError(
                "each model needs predictions of shape (images, classes) with at least "
                f"1 image and 2 classes, got {model.shape}."
            )
        if model.shape != models[0].shape:
            raise EnsembleError(
                "all models need predictions for the same images and classes, "
                f"got {models[0].shape} and {model.shape}."
            )
        if not np.issubdtype(model.dtype, np.floating):
            raise EnsembleError(f"predictions must be floating-point numbers, got {model.dtype}.")
    return models


def _to_log_probabilities(
    values: np.ndarray, kind: Kind, name: str
) -> Float32[np.ndarray, "images classes"]:
    wide = values.astype(np.float32)
    if kind == "log_probabilities":
        wide[np.isneginf(wide)] = MIN_LOG_PROBABILITY
    if not np.isfinite(wide).all():
        n_bad = int((~np.isfinite(wide).all(axis=1)).sum())
        raise EnsembleError(
            f"model {name}: {kind} of {n_bad} of {len(wide)} images are not finite."
        )
    if kind != "logits":
        _check_sums(wide, kind, name)
    if kind == "probabilities":
        wide = np.log(np.maximum(wide, np.exp(np.float32(MIN_LOG_PROBABILITY))))
    return normalize_log_probabilities(wide)


def _check_sums(values: np.ndarray, kind: Kind, name: str) -> None:
    if kind == "probabilities" and values.min() < -NEGATIVE_TOLERANCE:
        raise EnsembleError(f"model {name}: a probability is negative, {values.min():.4g}.")
    # 50 is far above any sum that is accepted, and keeps the exponential of logits finite
    probabilities = values if kind == "probabilities" else np.exp(np.minimum(values, 50.0))
    sums = probabilities.sum(axis=1)
    worst = float(sums[np.abs(sums - 1).argmax()])
    if abs(worst - 1) > SUM_TOLERANCE:
        raise EnsembleError(
            f"model {name}: {kind} of an image must sum to probability 1, got {worst:.4g}; "
            "outputs before softmax go into logits."
        )


def _checked_labels(
    labels: np.ndarray | Sequence[int], *, n_images: int, n_classes: int
) -> Int64[np.ndarray, " images"]:
    wanted = f"labels must be {n_images} whole numbers, one for each image"
    if labels is None:
        raise EnsembleError(f"{wanted}, got None.")
    try:
        given = np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise EnsembleError(f"{wanted}, got {type(labels).__name__}: {error}.") from error
    if given.shape != (n_images,) or not np.issubdtype(given.dtype, np.integer):
        raise EnsembleError(f"{wanted}, got shape {given.shape} of {given.dtype}.")
    if given.min() < 0 or given.max() >= n_classes:
        raise EnsembleError(
            f"labels must lie between 0 and {n_classes - 1}, got {given.min()} to {given.max()}."
        )
    return given.astype(np.int64)


def _unique_names(names: Iterable[object] | None, count: int, what: str) -> tuple[str, ...]:
    try:
        unique = tuple(str(name) for name in (range(count) if names is None else names))
    except TypeError as error:
        raise EnsembleError(f"{what} names must be a list, got {names!r}.") from error
    if len(unique) != count or len(set(unique)) != count:
        raise EnsembleError(
            f"a pool of {count} needs {count} different {what} names, got {', '.join(unique)}."
        )
    return unique


def _checked_costs(
    costs: Sequence[float] | np.ndarray | None, n_models: int
) -> Float[np.ndarray, " models"]:
    try:
        checked = np.ones(n_models) if costs is None else np.asarray(costs, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EnsembleError(f"costs must be {n_models} numbers above 0: {error}.") from error
    if checked.shape != (n_models,) or not (np.isfinite(checked) & (checked > 0)).all():
        raise EnsembleError(
            f"a pool of {n_models} needs {n_models} finite costs above 0, got {checked.tolist()}."
        )
    return checked

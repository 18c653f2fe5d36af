"""Predictions in one long table: a row for each model and image, a column for each class."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from ensembles.errors import EnsembleError
from ensembles.ordering import natural_order
from ensembles.pool_files import StoredPredictions

_LEADING = ("model", "image", "label")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    class_names: tuple[str, ...]
    models: list[str]
    images: list[str]
    labels: list[str]
    values: Float64[np.ndarray, "rows classes"]


def read_csv(path: Path) -> StoredPredictions:
    """Read a table from a CSV file; see `arrange`.

    Raises:
        EnsembleError: A line is not like the header, a cell is no number, or the table cannot be
            arranged.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            _check_header(header)
            leading: list[list[str]] = []
            values: list[list[float]] = []
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise EnsembleError(
                        f"line {rows.line_num}: {len(header)} cells are expected, got {len(row)}."
                    )
                leading.append(row[:3])
                values.append(_read_numbers(row[3:], rows.line_num))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EnsembleError(f"{path.name} cannot be read as CSV: {error}.") from error
    models, images, labels = zip(*leading, strict=True) if leading else ((), (), ())
    return _arrange(
        _Table(
            class_names=tuple(header[3:]),
            models=list(models),
            images=list(images),
            labels=list(labels),
            values=np.array(values, dtype=np.float64).reshape(len(values), len(header) - 3),
        )
    )


def read_parquet(path: Path) -> StoredPredictions:
    """Read a table from a parquet file; see `arrange`.

    Raises:
        EnsembleError: pyarrow is not installed, a column holds no numbers, or the table cannot be
            arranged.
    """
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise EnsembleError(
            "reading parquet needs pyarrow: pip install 'concertino[parquet]'."
        ) from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise EnsembleError(f"{path.name} cannot be read as parquet: {error}.") from error
    _check_header(table.column_names)
    models, images, labels = (
        [str(value) for value in table.column(name).to_pylist()] for name in _LEADING
    )
    class_names = tuple(table.column_names[3:])
    try:
        columns = [table.column(name).to_numpy().astype(np.float64) for name in class_names]
    except (TypeError, ValueError) as error:
        raise EnsembleError(f"a class's column does not hold numbers: {error}.") from error
    return _arrange(
        _Table(
            class_names=class_names,
            models=models,
            images=images,
            labels=labels,
            values=np.stack(columns, axis=1),
        )
    )


def _check_header(header: Sequence[str]) -> None:
    if tuple(header[:3]) != _LEADING or len(header) < 5 or len(set(header)) != len(header):
        raise EnsembleError(
            "a table of predictions needs the columns model, image, label and then one for each "
            f"of at least 2 different classes, got {', '.join(header) or 'none'}."
        )


def _read_numbers(cells: list[str], line: int) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError as error:
        raise EnsembleError(f"line {line}: {error}.") from error


def _arrange(table: _Table) -> StoredPredictions:
    """Sort the rows into one array per model, the images in the order of their first row."""
    if not table.models:
        raise EnsembleError("a table of predictions needs at least one row, got none.")
    names = sorted(set(table.models), key=natural_order)
    images = list(dict.fromkeys(table.images))
    model_places, image_places = _number(table.models, names), _number(table.images, images)
    cells = model_places * len(images) + image_places
    _check_cells(cells, names, images)
    arranged = np.empty((len(names) * len(images), len(table.class_names)))
    arranged[cells] = table.values
    return StoredPredictions(
        models=dict(zip(names, arranged.reshape(len(names), len(images), -1), strict=True)),
        labels=_label_images(table, images, image_places),
        class_names=table.class_names,
    )


def _number(values: Sequence[str], known: Sequence[str]) -> Int64[np.ndarray, " rows"]:
    places = {value: place for place, value in enumerate(known)}
    return np.array([places[value] for value in values], dtype=np.int64)


def _check_cells(
    cells: Int64[np.ndarray, " rows"], names: Sequence[str], images: Sequence[str]
) -> None:
    counts = np.bincount(cells, minlength=len(names) * len(images)).reshape(len(names), -1)
    if counts.max() > 1:
        model, image = divmod(int(counts.argmax()), len(images))
        raise EnsembleError(
            f"model {names[model]} has {counts.max()} rows for image {images[image]}; "
            "one is expected."
        )
    missing = (counts == 0).sum(axis=1)
    if missing.any():
        model = int(missing.argmax())
        image = int(counts[model].argmin())
        raise EnsembleError(
            f"model {names[model]} has no row for {missing[model]} of {len(images)} images, "
            f"such as {images[image]}."
        )


def _label_images(
    table: _Table, images: Sequence[str], image_places: Int64[np.ndarray, " rows"]
) -> Int64[np.ndarray, " images"]:
    of_rows = _number_labels(table.labels, table.class_names)
    of_images = np.empty(len(images), dtype=np.int64)
    of_images[image_places] = of_rows
    differ = np.flatnonzero(of_images[image_places] != of_rows)
    if len(differ):
        place = image_places[differ[0]]
        raise EnsembleError(f"image {images[place]} has different labels in different rows.")
    return of_images


def _number_labels(
    labels: Sequence[str], class_names: tuple[str, ...]
) -> Int64[np.ndarray, " rows"]:
    """Read labels as names of columns or, if they are none, as places from 0."""
    strangers = sorted(set(labels) - set(class_names))
    if not strangers:
        return _number(labels, class_names)
    places = [str(place) for place in range(len(class_names))]
    if set(labels) <= set(places):
        return _number(labels, places)
    raise EnsembleError(
        f"label {strangers[0]} is neither a class's column ({', '.join(class_names)}) nor a "
        f"number from 0 to {len(class_names) - 1}."
    )

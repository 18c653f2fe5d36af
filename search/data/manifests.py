"""Tables of images: a CSV file with one picture a line.

Columns, in any order and case: the picture (`path`, `image`, `file_name`, ...), its `label` or
`class`, and if wanted `split` and `group`; others are not looked at. Paths are relative to the
table. An empty split counts as train, an empty group as a group of its own.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ensembles.ordering import natural_order
from search.data.listing import GIVEN, SPLIT_NAMES, Given, Listing, digest, shortened
from search.errors import DataError

PATH_COLUMNS = ("path", "image", "file_name", "filename", "image_path", "file")
LABEL_COLUMNS = ("label", "class", "label_name", "class_name")
SPLIT_COLUMNS = ("split",)
GROUP_COLUMNS = ("group",)


def read_manifest(path: Path) -> Listing:
    """List the pictures of a CSV file.

    Args:
        path: The table, in UTF-8, with a line of column names; separated by comma, semicolon or
            tab.

    Returns:
        The images; a file that is not there is found out when it is decoded.

    Raises:
        DataError: A column is missing, a line has no label or an unknown split, or none of the
            files is there.
    """
    rows = _read_rows(path)
    columns = list(rows[0]) if rows else []
    path_column = _needed(path, columns, PATH_COLUMNS)
    label_column = _needed(path, columns, LABEL_COLUMNS)
    split_column = _find(columns, SPLIT_COLUMNS)
    group_column = _find(columns, GROUP_COLUMNS)
    names: list[str] = []
    texts: list[str] = []
    for line, row in enumerate(rows, start=2):
        for column, cells in ((path_column, names), (label_column, texts)):
            if not row[column]:
                raise DataError(f"{path}: line {line}: {column!r} is empty.")
            cells.append(row[column])
    class_names = tuple(sorted(set(texts), key=natural_order))
    place = {name: index for index, name in enumerate(class_names)}
    files = [os.path.join(path.parent, name) for name in names]  # noqa: PTH118 - many of them
    return Listing(
        source=str(path),
        names=names,
        labels=np.array([place[text] for text in texts], dtype=np.int64),
        class_names=class_names,
        given=_given(path, [row[split_column] for row in rows] if split_column else None, names),
        groups=_groups([row[group_column] for row in rows]) if group_column else None,
        signature=digest(str(path.resolve()), "\n".join(names), _stamps(path, files)),
        load=lambda index: Path(files[index]),
    )


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read all lines; every cell is stripped, every column is there."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}.") from error
    lines = text.splitlines(keepends=True)
    if not lines or not lines[0].strip():
        raise DataError(f"{path}: empty; expected a line of column names such as path,label.")
    separator = max(",;\t", key=lines[0].count)
    reader = csv.reader(lines, delimiter=separator)
    header = [name.strip() for name in next(reader)]
    rows = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                filled = [cell.strip() for cell in cells] + [""] * (len(header) - len(cells))
                rows.append(dict(zip(header, filled, strict=False)))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}.") from error
    if not rows:
        raise DataError(f"{path}: has column names ({shortened(header)}) but no images.")
    return rows


def _find(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    known = {column.lower(): column for column in reversed(columns)}
    return next((known[name] for name in wanted if name in known), None)


def _needed(path: Path, columns: Sequence[str], wanted: Sequence[str]) -> str:
    column = _find(columns, wanted)
    if column is None:
        raise DataError(
            f"{path}: no column {' or '.join(repr(name) for name in wanted)}; "
            f"found {shortened(columns)}."
        )
    return column


def _given(path: Path, splits: Sequence[str] | None, names: Sequence[str]) -> np.ndarray:
    codes: Mapping[str, Given] = {**SPLIT_NAMES, "": "train"}
    if splits is None or not any(splits):
        return np.zeros(len(names), dtype=np.uint8)
    for name, split in zip(names, splits, strict=True):
        if split.lower() not in codes:
            raise DataError(
                f"{path}: {name}: unknown split {split!r}; expected train, val or test."
            )
    return np.array([GIVEN.index(codes[split.lower()]) for split in splits], dtype=np.uint8)


def _groups(texts: Sequence[str]) -> np.ndarray:
    """Number the groups; an empty cell is a group of its own."""
    own = [text or f"\0{row}" for row, text in enumerate(texts)]
    return np.unique(own, return_inverse=True)[1].astype(np.int64)


def _stamps(path: Path, files: Sequence[str]) -> np.ndarray:
    """Return size and time of change of each file; -1 for one that is not there."""
    stamps = np.full((len(files), 2), -1, dtype=np.int64)
    for row, file in enumerate(files):
        try:
            status = os.stat(file)  # noqa: PTH116 - many of them
        except OSError:
            continue
        stamps[row] = status.st_size, status.st_mtime_ns
    if (stamps < 0).all():
        raise DataError(
            f"{path}: none of its {len(files)} files is there; looked first for {files[0]}."
        )
    return stamps

"""Folders of class folders: `root/class/*`, or `root/{train,val,test}/class/*`.

A folder `train` counts as a split only if it holds folders: among `bus`, `car` and `train` it is
a class. Pictures may lie deeper than their class folder; what is not a picture is not looked at.
"""

import logging
import os
from pathlib import Path

import numpy as np

from ensembles.images import ImageError, ImageFile, scan_images
from ensembles.ordering import natural_order
from search.data.listing import GIVEN, SPLIT_NAMES, Given, Listing, digest, shortened
from search.errors import DataError
from search.words import is_text

logger = logging.getLogger(__name__)


def read_folder(root: Path) -> Listing:
    """List the pictures of a folder, one folder for each class.

    Args:
        root: The folder.

    Returns:
        The images; their given roles are `none` if the folder has no `train` folder.

    Raises:
        DataError: No class folders, no pictures, a class without pictures, or one class only.
    """
    files: list[ImageFile] = []
    classes: list[str] = []
    given: list[int] = []
    for split, folder in _splits(root):
        for name in _class_folders(folder):
            if not is_text(name):
                raise DataError(
                    f"{folder}: the name of its class folder {name!a} is not UTF-8; rename it."
                )
            found = _pictures(folder / name)
            if not found:
                raise DataError(
                    f"{folder / name}: no pictures in this class folder; add some, or remove it."
                )
            files += found
            classes += [name] * len(found)
            given += [GIVEN.index(split)] * len(found)
    class_names = tuple(sorted(set(classes), key=natural_order))
    place = {name: index for index, name in enumerate(class_names)}
    names = [file.path.removeprefix(f"{root}{os.sep}") for file in files]
    return Listing(
        source=str(root),
        names=names,
        labels=np.array([place[name] for name in classes], dtype=np.int64),
        class_names=class_names,
        given=np.array(given, dtype=np.uint8),
        signature=digest(
            str(root.resolve()),
            "\n".join(names),
            np.stack(
                [
                    np.fromiter((file.size for file in files), np.int64),
                    np.fromiter((file.modified for file in files), np.int64),
                ],
                axis=1,
            ),
        ),
        load=lambda index: Path(files[index].path),
    )


def _splits(root: Path) -> list[tuple[Given, Path]]:
    """Return the folders that hold class folders, each with its given role."""
    names = _subfolders(root)
    splits = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    train = [name for name, given in splits.items() if given == "train"]
    if train and _subfolders(root / train[0]):
        if len(splits) < len(names):
            others = [name for name in names if name not in splits]
            logger.warning("%s: not a split, left out: %s", root, shortened(others))
        return [(given, root / name) for name, given in splits.items()]
    if names and len(splits) == len(names) and not train:
        raise DataError(
            f"{root}: has {shortened(names)} but no folder 'train'; "
            "expected train/CLASS/*.jpg beside it."
        )
    return [("none", root)]


def _class_folders(folder: Path) -> list[str]:
    names = _subfolders(folder)
    if not names:
        loose = _pictures(folder)
        tables = sorted(path.name for path in folder.glob("*.csv"))
        got = f"{len(loose)} pictures, but no folders" if loose else "no pictures and no folders"
        hint = f", or give the manifest: --data {folder / tables[0]}" if tables else ""
        raise DataError(f"{folder}: {got}; expected one folder for each class{hint}.")
    return names


def _pictures(folder: Path) -> list[ImageFile]:
    try:
        return scan_images(folder)
    except ImageError as error:
        raise DataError(f"{error}.") from error


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}.") from error
    shown = (name for name in names if not name.startswith(".") and name != "__MACOSX")
    return sorted(shown, key=natural_order)

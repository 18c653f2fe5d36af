"""Folds of the images that are not sealed: for small data, each image is predicted once unseen.

Made as the roles are: by a hash of the pixels and the seed, class by class, equal images and
groups together. The keys are mixed anew, since those of the roles would make folds of roles.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from search.data.roles import Roles
from search.data.sharing import mixed_keys, share_out
from search.data.store import ImageStore
from search.errors import DataError
from search.paths import written_whole
from search.seeding import derive_seed

OUTSIDE = 0
"""The fold of an image of the test role, or of none."""


def assign_folds(
    store: ImageStore, roles: Roles, *, n_folds: int, seed: int
) -> Int64[np.ndarray, " images"]:
    """Give each image of the train, stop and ens roles one fold.

    Args:
        store: The images.
        roles: The role of each; the test role is in no fold.
        n_folds: At least 2.
        seed: Another seed gives other folds.

    Returns:
        For each image of the store its fold, from 1 to `n_folds`, or `OUTSIDE`.

    Raises:
        DataError: There are fewer images to share out than folds, or all images of a class would
            lie in one fold, so that nothing could be learned of it without them.
    """
    rows = np.sort(np.concatenate([roles.train, roles.stop, roles.ens]))
    keys = mixed_keys(store.hashes, derive_seed(seed, "folds", n_folds))
    folds = np.full(len(store), OUTSIDE, dtype=np.int64)
    folds[rows] = 1 + share_out(store, rows, keys, np.ones(n_folds))
    for fold in range(1, n_folds + 1):
        if not (folds == fold).any():
            raise DataError(
                f"{len(rows)} images cannot be shared out to {n_folds} folds; use fewer --folds."
            )
        others = store.labels[(folds != fold) & (folds != OUTSIDE)]
        counts = np.bincount(others, minlength=len(store.class_names))
        if not counts.all():
            name = store.class_names[int(counts.argmin())]
            raise DataError(
                f"class {name!r} lies in one fold as a whole, since its images are equal or of "
                "one group: there is nothing to learn it from without that fold."
            )
    return folds


def write_folds(path: Path, folds: Int64[np.ndarray, " images"]) -> None:
    """Write folds to an `.npy` file, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, folds, allow_pickle=False)


def read_folds(path: Path) -> Int64[np.ndarray, " images"]:
    """Read what `write_folds` wrote.

    Raises:
        DataError: The file is gone or not whole.
    """
    try:
        folds: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the folds of the images cannot be read: {error}.") from error
    return folds

"""Which image trains, which stops, which chooses the ensemble, which tests.

Roles are decided by a hash of the pixels and the seed, class by class, not by the order of the
images: within a class the images are sorted by that hash and cut by the shares, so an image keeps
its role when others are added, unless it lies close to a cut.

* Exact duplicates and images of one group stay together. The user's own split is stronger: a
  group is not torn out of it. A duplicate of a test image is dropped from the user's train and
  val, and one of a val image from train, since it would be learned by heart; how many is told.
* A user's val becomes stop and ens; what the user gave no role to is shared out as 7:1:1:1, less
  the roles that are given.
"""

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from search.data.listing import GIVEN, Given, digest
from search.data.sharing import mixed_keys, share_out
from search.data.store import ImageStore, content_fingerprint
from search.errors import DataError
from search.paths import written_whole

logger = logging.getLogger(__name__)

Role = Literal["train", "stop", "ens", "test"]
ROLES: tuple[Role, ...] = get_args(Role)

SHARES: Mapping[Role, int] = {"train": 7, "stop": 1, "ens": 1, "test": 1}
"""How images without a given role are shared out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Roles:
    """The rows of each role, ascending, disjoint."""

    train: Int64[np.ndarray, " train"]
    stop: Int64[np.ndarray, " stop"]
    ens: Int64[np.ndarray, " ens"]
    test: Int64[np.ndarray, " test"]
    dropped: Int64[np.ndarray, " dropped"]
    """Duplicates of images that the user's split put elsewhere too; they play no role."""
    unused: Int64[np.ndarray, " unused"]
    """Images to train on beyond `limit_train`."""
    fingerprint: str
    """Hash of the pixels and labels of each role, whatever their order."""

    def rows(self, role: Role) -> Int64[np.ndarray, " rows"]:
        """Return the rows of one role."""
        rows: np.ndarray = getattr(self, role)
        return rows

    def sizes(self) -> dict[Role, int]:
        """Return the number of images of each role."""
        return {role: len(self.rows(role)) for role in ROLES}


def assign_roles(store: ImageStore, *, seed: int, limit_train: int | None = None) -> Roles:
    """Give each image one role.

    Args:
        store: The images.
        seed: Another seed gives other roles, where the user gave none.
        limit_train: Most images to train on; the images of a smaller limit are among those of a
            larger one.

    Returns:
        Roles with at least one image of each class in each of them.

    Raises:
        DataError: A class has too few images, or `limit_train` is below the number of classes.
    """
    keys = mixed_keys(store.hashes, seed)
    dropped = _leaked(store)
    codes = np.full(len(store), -1, dtype=np.int64)
    for members, roles in _pools(store):
        rows = np.flatnonzero(members & ~dropped)
        if len(roles) == 1:
            codes[rows] = ROLES.index(roles[0])
        elif len(rows):
            shares = np.array([SHARES[role] for role in roles], dtype=float)
            places = np.array([ROLES.index(role) for role in roles], dtype=np.int64)
            codes[rows] = places[share_out(store, rows, keys, shares)]
    if dropped.any():
        logger.warning(
            "%d images are in two of the given splits; dropped from the earlier one", dropped.sum()
        )
    _check_every_class(store, codes)
    train = np.flatnonzero(codes == ROLES.index("train"))
    kept = _limited(train, store, keys, limit_train)
    return _roles_of(store, codes, kept, dropped=np.flatnonzero(dropped))


def order_fingerprint(store: ImageStore, roles: Roles) -> str:
    """Return a hash of the images of each role in their order, wherever they lie."""
    parts = [(store.hashes[rows], store.labels[rows]) for rows in map(roles.rows, ROLES)]
    return digest(*(array for part in parts for array in part))


def write_roles(path: Path, roles: Roles) -> None:
    """Write roles to an `.npz` file, whole or not at all."""
    fields = {name: getattr(roles, name) for name in (*ROLES, "dropped", "unused")}
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, fingerprint=np.array(roles.fingerprint), **fields)


def read_roles(path: Path) -> Roles:
    """Read what `write_roles` wrote.

    Raises:
        DataError: The file is gone or not whole.
    """
    try:
        # Opened here: NumPy does not close a damaged file that it opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            fields = {name: arrays[name] for name in arrays.files}
        return Roles(**{**fields, "fingerprint": str(fields["fingerprint"])})
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: the roles of the images cannot be read: {error}; a study without them "
            "cannot go on."
        ) from error


def _pools(
    store: ImageStore,
) -> list[tuple[Bool[np.ndarray, " images"], Sequence[Role]]]:
    """Return sets of images, each with the roles that it is shared out to."""

    def have(given: Given) -> np.ndarray:
        return np.asarray(store.given == GIVEN.index(given))

    test, val = have("test"), have("val")
    roles: list[Role] = ["train"]
    roles += [] if val.any() else ["stop", "ens"]
    roles += [] if test.any() else ["test"]
    return [(have("none") | have("train"), roles), (val, ["stop", "ens"]), (test, ["test"])]


def _leaked(store: ImageStore) -> Bool[np.ndarray, " images"]:
    """Find images to train or choose on whose pixels are in a later given split as well."""
    rank = np.where(store.given == GIVEN.index("none"), GIVEN.index("train"), store.given)
    _, content = np.unique(store.hashes, return_inverse=True)
    highest = np.zeros(content.max() + 1, dtype=rank.dtype)
    np.maximum.at(highest, content, rank)
    return np.asarray(rank < highest[content])


def _check_every_class(store: ImageStore, codes: Int64[np.ndarray, " images"]) -> None:
    """Refuse roles in which a class is missing."""
    n_classes = len(store.class_names)
    for place, role in enumerate(ROLES):
        counts = np.bincount(store.labels[codes == place], minlength=n_classes)
        if counts.all():
            continue
        label = int(counts.argmin())
        mine = store.labels == label
        images = f"{mine.sum()} images"
        different = len(np.unique(store.hashes[mine]))
        details = f", {different} of them different" if different < mine.sum() else ""
        if store.groups is not None:
            details += f", in {len(np.unique(store.groups[mine]))} groups"
        raise DataError(
            f"class {store.class_names[label]!r} has {images}{details}: none is left for the "
            f"{role} role; each of train, stop, ens and test needs at least one of every class."
        )


def _limited(
    train: Int64[np.ndarray, " train"],
    store: ImageStore,
    keys: UInt64[np.ndarray, " images"],
    limit: int | None,
) -> Int64[np.ndarray, " kept"]:
    """Keep the same share of every class, the images with the lowest keys first."""
    n_classes = len(store.class_names)
    if limit is None or limit >= len(train):
        return train
    if limit < n_classes:
        raise DataError(
            f"limit_train must be at least {n_classes}, one image of each class, got {limit}."
        )
    place = np.zeros(len(train))
    for label in range(n_classes):
        mine = np.flatnonzero(store.labels[train] == label)
        mine = mine[np.argsort(keys[train[mine]], kind="stable")]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
        place[mine[0]] = 0
    order = np.lexsort((keys[train], place))
    return np.sort(train[order[:limit]])


def _roles_of(
    store: ImageStore,
    codes: Int64[np.ndarray, " images"],
    train: Int64[np.ndarray, " train"],
    *,
    dropped: Int64[np.ndarray, " dropped"],
) -> Roles:
    rows = {role: np.flatnonzero(codes == place) for place, role in enumerate(ROLES)}
    unused = np.setdiff1d(rows["train"], train)
    rows["train"] = train
    prints = [
        content_fingerprint(store.hashes[part], store.labels[part]) for part in rows.values()
    ]
    return Roles(**rows, dropped=dropped, unused=unused, fingerprint=digest(*prints))

"""Decoded images on disk, made once and shared by all workers through one memory map.

Choices that could have gone otherwise:

* The cache is looked up by what was asked (the listing, the size, the fit), not by what came out
  of it, so that a second start reads no picture at all. A file that is new, gone, renamed, or of
  another size or time of change is noticed; one that was overwritten by as many bytes and given
  its old time back is not.
* The set may be larger than memory: it is written in pieces, mapped and never loaded. Training
  picks its rows at random, so the kernel's page cache holds what fits, and is told of the next
  batch's rows while the cores work on this one.
* Pictures that cannot be read are left out and written down with their reason.
"""

import json
import logging
import mmap
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Int64, UInt8, UInt64
from pydantic import BaseModel, ConfigDict

from ensembles.inputs import Fit, ImageInput
from search.data.decoding import (
    Decoded,
    OnProgress,
    Skipped,
    choose_input,
    decode_images,
    flush,
    untold,
)
from search.data.listing import Listing, digest
from search.errors import DataError, SearchError
from spaces.task import Task

logger = logging.getLogger(__name__)

FORMAT_VERSION: Literal[1] = 1
"""Of the folder; a change makes every cache be made anew."""

_WAIT_SECONDS = 0.5
# Of images smaller than that a set has to be of millions to be larger than memory, and a call for
# each would cost a hundredth of the training.
_MIN_BYTES_TO_ANNOUNCE = 4 * mmap.PAGESIZE
_IMAGES, _ROWS, _NAMES, _MANIFEST = "images.npy", "rows.npz", "names.json", "manifest.json"


class Manifest(BaseModel):
    """What stands beside the pixels, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1]
    class_names: tuple[str, ...]
    size: int
    """Side of the images in pixels, without padding."""
    channels: int
    pad: int
    """Pixels of reflection around each image."""
    fit: Fit
    fingerprint: str
    """Hash of all pixels and labels, whatever their order."""
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageStore:
    """Decoded images, padded by reflection; the pixels stay on disk until they are touched."""

    folder: Path
    manifest: Manifest
    images: UInt8[np.ndarray, "images padded padded channels"]
    """A private memory map: readers share the pages; a write would not reach the disk."""
    labels: Int64[np.ndarray, " images"]
    hashes: UInt64[np.ndarray, " images"]
    """Of the decoded pixels; equal for exact duplicates."""
    given: UInt8[np.ndarray, " images"]
    """Places in `listing.GIVEN`."""
    groups: Int64[np.ndarray, " images"] | None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self.manifest.class_names

    @property
    def size(self) -> int:
        """Side of the images in pixels, without padding."""
        return self.manifest.size

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.manifest.channels

    @property
    def pad(self) -> int:
        """Pixels of reflection around each image."""
        return self.manifest.pad

    @property
    def fingerprint(self) -> str:
        """Hash of all pixels and labels, whatever their order."""
        return self.manifest.fingerprint

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Pictures that could not be read."""
        return self.manifest.skipped

    @property
    def task(self) -> Task:
        """The shape of the problem."""
        return Task(image_size=self.size, channels=self.channels, n_classes=len(self.class_names))

    @property
    def image_input(self) -> ImageInput:
        """How a picture becomes such an image; mean and std are not known here."""
        return ImageInput(size=self.size, channels=self.channels, fit=self.manifest.fit)

    @cached_property
    def names(self) -> list[str]:
        """Name of each image; read when first asked for, since workers need none."""
        names: list[str] = json.loads((self.folder / _NAMES).read_text(encoding="utf-8"))
        return names

    def unpadded(self, rows: slice | Int64[np.ndarray, " rows"]) -> UInt8[np.ndarray, "n h w c"]:
        """Return images without their padding."""
        inner = slice(self.pad, self.pad + self.size)
        chosen: np.ndarray = self.images[rows]
        return chosen[:, inner, inner]

    def announce(self, rows: Int64[np.ndarray, " rows"]) -> None:
        """Let the kernel begin to read some images from the disk, where they are not in memory.

        Returns at once. Does nothing for small images, and where there is no `madvise`.
        """
        images, n_bytes = self.images, self.images[:1].nbytes
        if n_bytes < _MIN_BYTES_TO_ANNOUNCE or not isinstance(images, np.memmap):
            return
        mapped: Any = images._mmap  # type: ignore[attr-defined]  # NumPy shows it no other way
        if not hasattr(mapped, "madvise"):
            return
        first = images.offset % mmap.ALLOCATIONGRANULARITY  # NumPy maps from a whole page on
        for row in rows.tolist():
            place = first + row * n_bytes
            begin = place - place % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, begin, place + n_bytes - begin)


def prepare_store(
    listing: Listing,
    *,
    cache_folder: Path,
    image_size: int | None = None,
    fit: Fit = "crop",
    on_progress: OnProgress = untold,
    n_threads: int | None = None,
) -> ImageStore:
    """Decode all images, or find them decoded already.

    Two processes that ask at the same time decode once: the second waits for the first.

    Args:
        listing: The images.
        cache_folder: Where decoded images are kept, one folder for each set, size and fit.
        image_size: Side in pixels; default: the images' own if all are squares of one size of at
            most 64, else the nearest of `decoding.AUTOMATIC_SIZES` to the median of the shorter
            sides.
        fit: How a picture that is not square becomes one.
        on_progress: Called with the images done and the images in all, from this thread, at least
            twice a second, also while another process decodes them. What it raises ends it all.
        n_threads: Threads that decode; default: one per processor.

    Returns:
        The opened store.

    Raises:
        DataError: No picture can be read, or a class is left without any.
        SearchError: The cache cannot be written.
    """
    folder = cache_folder / _key(listing, image_size, fit)
    if is_whole(folder):
        return open_store(folder)
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        alone = _locked(folder.with_suffix(".lock"), lambda: on_progress(0, len(listing.names)))
        with alone, _written_whole(folder) as partial:
            if partial:
                image_input = choose_input(
                    listing, image_size=image_size, fit=fit, on_progress=on_progress
                )
                threads = n_threads or os.cpu_count() or 1
                _write_store(partial, listing, image_input, on_progress, threads)
    except OSError as error:
        raise SearchError(
            f"{cache_folder}: decoded images cannot be kept there: {error.strerror or error}."
        ) from error
    return open_store(folder)


def open_store(folder: Path) -> ImageStore:
    """Open decoded images; reads no pixels.

    Args:
        folder: `ImageStore.folder` of the store that was prepared.

    Returns:
        The store, its pixels as a memory map.

    Raises:
        DataError: The folder is gone, not whole, or of another version.
    """
    try:
        manifest = Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        images = np.load(folder / _IMAGES, mmap_mode="c", allow_pickle=False)
        # Opened here: NumPy does not close a damaged file that it opened itself.
        with (folder / _ROWS).open("rb") as file, np.load(file, allow_pickle=False) as rows:
            arrays = {name: rows[name] for name in rows.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{folder}: no whole store of decoded images; `python -m search resume` decodes them "
            "anew."
        ) from error
    return ImageStore(
        folder=folder,
        manifest=manifest,
        images=images,
        labels=arrays["labels"],
        hashes=arrays["hashes"],
        given=arrays["given"],
        groups=arrays.get("groups"),
    )


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock; while another process does, say every now and then that we wait."""
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=_WAIT_SECONDS)
        except Timeout:
            on_wait()
        else:
            break
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path | None]:
    """Give an empty folder that takes its place when the block ends well; none if it is there.

    The caller holds the lock, so what lies in the way is a killed decoder's, or damaged.
    """
    if is_whole(folder):  # made by the process that held the lock before
        yield None
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Tell whether a folder holds a whole store of this version."""
    try:
        open_store(folder)
    except DataError:
        return False
    return True


def _key(listing: Listing, image_size: int | None, fit: Fit) -> str:
    """Name the folder by everything that was asked for."""
    asked = f"{FORMAT_VERSION} {image_size} {fit} {json.dumps(listing.class_names)}"
    groups = b"" if listing.groups is None else listing.groups
    return digest(asked, listing.signature, listing.labels, listing.given, groups)


def _write_store(
    folder: Path,
    listing: Listing,
    image_input: ImageInput,
    on_progress: OnProgress,
    n_threads: int,
) -> None:
    """Write all files of a store into an empty folder."""
    pad = max(1, image_input.size // 8)
    decoded = decode_images(
        listing,
        image_input,
        path=folder / _IMAGES,
        pad=pad,
        on_progress=on_progress,
        n_threads=n_threads,
    )
    _check_what_is_left(listing, decoded)
    rows = {
        "labels": listing.labels[decoded.rows],
        "given": listing.given[decoded.rows],
        "hashes": decoded.hashes,
    }
    if listing.groups is not None:
        rows["groups"] = listing.groups[decoded.rows]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        class_names=listing.class_names,
        size=image_input.size,
        channels=image_input.channels,
        pad=pad,
        fit=image_input.fit,
        fingerprint=content_fingerprint(rows["hashes"], rows["labels"]),
        skipped=decoded.skipped,
    )
    with (folder / _ROWS).open("wb") as file:
        np.savez(file, allow_pickle=False, **rows)
        flush(file)
    names = json.dumps([listing.names[row] for row in decoded.rows])
    for name, text in ((_NAMES, names), (_MANIFEST, manifest.model_dump_json(indent=1))):
        with (folder / name).open("wb") as file:
            file.write(text.encode())
            flush(file)


def content_fingerprint(hashes: UInt64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"]) -> str:
    """Return a hash of pixels and labels that does not depend on the order of the images."""
    order = np.lexsort((labels, hashes))
    return digest(hashes[order], labels[order])


def _check_what_is_left(listing: Listing, decoded: Decoded) -> None:
    """Refuse a set of which too little could be read; tell what is left out."""
    if decoded.skipped:
        name, reason = decoded.skipped[0]
        what = f"{len(decoded.skipped)} of {len(listing.names)} pictures cannot be read"
        if not len(decoded.rows):
            raise DataError(f"{listing.source}: {what}; the first, {name}: {reason}.")
        logger.warning(
            "%s: %s and are left out; the first, %s: %s", listing.source, what, name, reason
        )
    left = np.bincount(listing.labels[decoded.rows], minlength=len(listing.class_names))
    if not left.all():
        empty = listing.class_names[int(left.argmin())]
        raise DataError(
            f"{listing.source}: no picture of class {empty!r} can be read; mend its files, or "
            "leave the class out."
        )

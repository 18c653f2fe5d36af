"""Decodes a listing into one file of pixels, without ever holding the whole set in memory.

Choices that could have gone otherwise:

* Grey or colour is decided by a sample of the images; a colour picture that turns up later in a
  grey set is converted to grey, as `load_image` does with it when predicting.
* The file grows by appending, not through a writable memory map: it is as long as the pictures
  that could be read, and no dirty pages pile up for a set larger than memory.
* Threads, not processes: Pillow decodes outside Python's lock, and small pictures are bound by
  opening their files, which more processes do not speed up (measured, 60,000 files of 32 x 32).
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from joblib import Parallel, delayed

from ensembles.images import ImageError, Source, load_image, measure_image, open_image
from ensembles.inputs import Fit, ImageInput
from search.data.listing import Listing

AUTOMATIC_SIZES = (32, 64, 96, 128)
"""Sides that are chosen for pictures of many sizes, in pixels."""

_SAMPLE = 256
_CHUNK_BYTES = 1 << 23
_HEADER_BYTES = 128
_MAX_PART = 32
"""Pictures that a thread decodes before `on_progress` is called, which may want to end it all."""

OnProgress: TypeAlias = Callable[[int, int], None]


def untold(_n_done: int, _n_images: int) -> None:
    """Tell nobody how many images are decoded."""


class Skipped(NamedTuple):
    """A picture that is left out."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """What was written."""

    rows: Int64[np.ndarray, " images"]
    """Places in the listing of the pictures that could be read, in the order of the file."""
    hashes: UInt64[np.ndarray, " images"]
    """Of their pixels, without padding."""
    skipped: tuple[Skipped, ...]
    """The other pictures."""


def choose_input(
    listing: Listing,
    *,
    image_size: int | None,
    fit: Fit,
    on_progress: OnProgress = untold,
) -> ImageInput:
    """Decide size and channels by a sample, evenly spread over the listing.

    Args:
        listing: The images.
        image_size: Side in pixels; none: decided here.
        fit: Passed through.
        on_progress: Called before each picture of the sample with 0 and the images in all.

    Returns:
        The input without mean and std. One channel if no picture of the sample has colour.
    """
    n_images = len(listing.names)
    rows = np.unique(np.linspace(0, n_images - 1, min(n_images, _SAMPLE)).astype(int)).tolist()

    def look_at(row: int) -> Source:
        on_progress(0, n_images)
        return listing.load(row)

    channels = 1 if all(_is_grey(look_at(row)) for row in rows) else 3
    size = image_size or _choose_size(look_at(row) for row in rows)
    return ImageInput(size=size, channels=channels, fit=fit)


def decode_images(
    listing: Listing,
    image_input: ImageInput,
    *,
    path: Path,
    pad: int,
    on_progress: OnProgress = untold,
    n_threads: int = 1,
) -> Decoded:
    """Decode all pictures into one `.npy` file of `uint8`, (n, h, w, c), padded by reflection.

    Args:
        listing: The images.
        image_input: Size, channels and fit.
        path: The file to write.
        pad: Pixels to add on each side.
        on_progress: Called with the images done and the images in all, from this thread, after
            every few pictures. What it raises ends the decoding.
        n_threads: Threads that decode.

    Returns:
        Which pictures are in the file, and which are left out.
    """
    rows: list[int] = []
    skipped: list[Skipped] = []
    hashes: list[bytes] = []
    side = image_input.size + 2 * pad
    with path.open("wb") as file:
        file.write(bytes(_HEADER_BYTES))
        for start, chunk in _decode_chunks(listing, image_input, n_threads, on_progress):
            for row, pixels in enumerate(chunk, start):
                if isinstance(pixels, ImageError):
                    skipped.append(Skipped(listing.names[row], str(pixels)))
                    continue
                rows.append(row)
                hashes.append(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest())
            file.write(
                _padded([pixels for pixels in chunk if not isinstance(pixels, ImageError)], pad)
            )
        file.seek(0)
        file.write(_header((len(rows), side, side, image_input.channels)))
        flush(file)
    return Decoded(
        rows=np.array(rows, dtype=np.int64),
        hashes=np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64),
        skipped=tuple(skipped),
    )


def flush(file: BinaryIO) -> None:
    """Have the bytes on the disk, not only on their way."""
    file.flush()
    os.fsync(file.fileno())


def _decode_chunks(
    listing: Listing, image_input: ImageInput, n_threads: int, on_progress: OnProgress
) -> Iterator[tuple[int, list[np.ndarray | ImageError]]]:
    """Yield the place of the first picture and the pixels, or the reason there are none."""
    leaving = threading.Event()

    def decode(row: int) -> np.ndarray | ImageError:
        try:
            return load_image(listing.load(row), image_input)
        except ImageError as error:
            return error

    def decode_part(part: range) -> list[np.ndarray | ImageError]:
        return [decode(row) for row in part if not leaving.is_set()]

    n_images = len(listing.names)
    step = max(n_threads, _CHUNK_BYTES // (image_input.size**2 * image_input.channels))
    # A few parts for each thread, so that none waits long.
    part = min(_MAX_PART, -(-step // (4 * n_threads)))
    with Parallel(n_jobs=n_threads, prefer="threads", return_as="generator") as parallel:
        try:
            for start in range(0, n_images, step):
                stop = min(start + step, n_images)
                parts = [range(at, min(at + part, stop)) for at in range(start, stop, part)]
                chunk: list[np.ndarray | ImageError] = []
                for decoded in parallel(delayed(decode_part)(part) for part in parts):
                    chunk += decoded
                    on_progress(start + len(chunk), n_images)
                yield start, chunk
        finally:
            leaving.set()


def _padded(images: list[UInt8[np.ndarray, "h w c"]], pad: int) -> bytes:
    if not images:
        return b""
    widths = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return np.pad(np.stack(images), widths, mode="reflect").tobytes()


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an `.npy` file, always of the same length.

    NumPy pads its own to what it finds handy; here the number of images is known at the end only.
    """
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    magic = np.lib.format.magic(1, 0)
    length = _HEADER_BYTES - len(magic) - 2
    return magic + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


def _choose_size(sources: Iterable[Source]) -> int:
    sizes = []
    for source in sources:
        try:
            sizes.append(measure_image(source))
        except ImageError:
            continue
    if not sizes:
        return AUTOMATIC_SIZES[0]
    width, height = sizes[0]
    if len(set(sizes)) == 1 and width == height and 4 <= width <= 64:
        return width
    shorter = float(np.median([min(size) for size in sizes]))
    return min(AUTOMATIC_SIZES, key=lambda side: abs(side - shorter))


def _is_grey(source: Source) -> bool:
    """Tell whether a picture has no colour, even if it is stored with three channels."""
    try:
        picture = open_image(source)
    except ImageError:
        return True
    pixels = np.asarray(picture)
    return picture.mode == "L" or bool((pixels == pixels[:, :, :1]).all())

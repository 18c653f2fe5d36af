"""From any picture to a square of pixels: the one decode-and-resize of training and predicting.

Choices that could have gone otherwise:

* Transparent pixels lie on white, where most such pictures (logos, products) were meant to be
  seen; dropping the alpha channel would show whatever colour the file hides under it.
* 16-bit grey keeps its upper byte. Stretching each picture to its own darkest and brightest
  pixel would look better and lose what the absolute brightness says.
* Bilinear with antialiasing: bicubic rings at edges, and no search gained from it.
* JPEG is decoded at full size (no `draft`), so a file, its bytes, and the picture that somebody
  else decoded give the same pixels.
* Only raster formats that Pillow decodes by itself: EPS, for one, would start Ghostscript.
"""

import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from ensembles.errors import EnsembleError
from ensembles.inputs import ImageInput
from ensembles.ordering import natural_order

Source: TypeAlias = "Path | bytes | Image.Image | np.ndarray"

MAX_PIXELS = 89_478_485
"""Pillow's own limit, a quarter of a gigabyte of RGB; a larger file is refused, not decoded."""

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""What a file of pixels is called, in lower case."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# What Pillow raises on damaged files, found by feeding it some.
_DAMAGES = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(EnsembleError):
    """A picture that cannot be read; the message is the reason, without the file's name."""


class ImageFile(NamedTuple):
    """One file of pixels, as the folder lists it."""

    path: str
    size: int
    """In bytes."""
    modified: int
    """Time of the last change, in nanoseconds."""


def load_image(source: Source, image_input: ImageInput) -> UInt8[np.ndarray, "h w c"]:
    """Read a picture and fit it to what a network expects.

    A picture that already has the right size keeps its pixels untouched.

    Args:
        source: A file, the bytes of a file, a Pillow image, or `uint8` pixels shaped (h, w),
            (h, w, 1), (h, w, 3) or (h, w, 4), the last with alpha.
        image_input: Size, channels and fit; mean and std are not looked at.

    Returns:
        Pixels, (size, size, channels).

    Raises:
        ImageError: The source is not a picture, is damaged or truncated, or is too large.
    """
    picture = open_image(source)
    mode = "L" if image_input.channels == 1 else "RGB"
    if picture.mode != mode:
        picture = picture.convert(mode)
    pixels = np.array(fit_image(picture, image_input))
    return pixels.reshape(image_input.size, image_input.size, image_input.channels)


def open_image(source: Source) -> Image.Image:
    """Decode a picture at its own size: upright, without alpha, 8 bits, grey or RGB.

    Args:
        source: As in `load_image`.

    Returns:
        A picture of mode `L` or `RGB`.

    Raises:
        ImageError: The source is not a picture, is damaged or truncated, or is too large.
    """
    if isinstance(source, np.ndarray):
        source = _picture_of(source)
    if isinstance(source, Image.Image):
        return _decoded(source)
    with _opened(source) as picture:
        return _decoded(picture)


def measure_image(source: Source) -> tuple[int, int]:
    """Return width and height, as stored, from the header alone.

    Raises:
        ImageError: The source is not a picture or is too large.
    """
    if isinstance(source, np.ndarray):
        source = _picture_of(source)
    if isinstance(source, Image.Image):
        return source.size
    with _opened(source) as picture:
        return picture.size


def fit_image(picture: Image.Image, image_input: ImageInput) -> Image.Image:
    """Make a picture square: cut its middle out, put black bars beside it, or stretch it."""
    size = image_input.size
    if picture.size == (size, size):
        return picture
    width, height = picture.size
    if image_input.fit == "stretch" or width == height:
        return _resized(picture, (size, size))
    if image_input.fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return _resized(picture, (size, size), (left, top, left + side, top + side))
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    square = Image.new(picture.mode, (size, size))
    offset = ((size - inner[0]) // 2, (size - inner[1]) // 2)
    square.paste(_resized(picture, inner), offset)
    return square


def list_images(folder: Path) -> list[Path]:
    """List the pictures in a folder and below it, in natural order (`2.png` before `10.png`).

    A picture is known by the suffix of its name. Hidden files and folders are skipped.

    Raises:
        ImageError: The folder cannot be read.
    """
    return [Path(file.path) for file in scan_images(folder)]


def scan_images(folder: str | Path) -> list[ImageFile]:
    """List the pictures as `list_images` does, with size and time of change."""
    root = os.fspath(folder)
    try:
        files = list(_walk(root, frozenset()))
    except OSError as error:
        raise ImageError(f"cannot list {folder}: {error.strerror or error}") from error
    # All paths begin alike, and what follows a separator is another run of text or digits: so the
    # order of the rest is that of the whole.
    n_alike = len(os.path.join(root, ""))  # noqa: PTH118
    files.sort(key=lambda file: natural_order(file.path[n_alike:]))
    return files


def _walk(folder: str, above: frozenset[str]) -> Iterator[ImageFile]:
    """Yield the pictures below; a link that leads back up is not followed.

    Pipes, sockets and devices are skipped, whatever they are called.
    """
    here = os.path.realpath(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                yield from _walk(entry.path, above | {here})
            elif entry.name.lower().endswith(SUFFIXES):
                status = entry.stat()
                if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
                    continue
                yield ImageFile(entry.path, status.st_size, status.st_mtime_ns)


def _opened(source: Path | bytes) -> Image.Image:
    """Read a file's header; a pipe or device, which may never answer, is not opened."""
    if isinstance(source, Path) and _may_block(source):
        raise ImageError("not a regular file")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        picture: Image.Image = Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(_why_unknown(source)) from error
    except _DAMAGES as error:
        raise ImageError(_one_line(error)) from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise ImageError(f"more than {MAX_PIXELS:,} pixels: {picture.width} x {picture.height}")
    return picture


def _may_block(path: Path) -> bool:
    """Tell whether a path is a pipe, a socket or a device."""
    return not (path.is_file() or path.is_dir()) and path.exists()


def _decoded(picture: Image.Image) -> Image.Image:
    """Read the pixels; turn them upright, to 8 bits, grey or RGB."""
    try:
        picture.load()
        turn = _TURNS.get(_orientation(picture))
        plain = _without_alpha(picture)
        return plain if turn is None else plain.transpose(turn)
    except ImageError:
        raise
    except _DAMAGES as error:
        raise ImageError(_one_line(error)) from error


def _orientation(picture: Image.Image) -> int:
    """Return how the camera was held: 1 (upright) to 8; damaged EXIF counts as upright."""
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except _DAMAGES:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _without_alpha(picture: Image.Image) -> Image.Image:
    """Convert any mode that Pillow knows to `L` or `RGB`."""
    if picture.mode in ("L", "RGB") and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I"):
        return _from_16_bits(picture)
    if picture.mode == "F":
        raise ImageError("its pixels are floats; 8 or 16 bit integers are needed")
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        grey = picture.mode in ("1", "L", "LA")
        clear = picture.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("L" if grey else "RGB")
    return picture.convert("L" if picture.mode in ("1", "LA") else "RGB")


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Keep the upper byte of 16-bit grey."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"its pixels go from {values.min()} to {values.max()}, not 0 to 65535")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _picture_of(pixels: np.ndarray) -> Image.Image:
    """Wrap an array of pixels."""
    shape = pixels.shape
    shaped = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if pixels.dtype != np.uint8 or not shaped or 0 in shape:
        raise ImageError(
            "an array of pixels must be uint8, shaped (h, w), (h, w, 1), (h, w, 3) or "
            f"(h, w, 4), got {pixels.dtype} {shape}"
        )
    return Image.fromarray(pixels[:, :, 0] if shape[2:] == (1,) else pixels)


def _resized(
    picture: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    # The gap lets Pillow average whole blocks first: 3x faster for photos, no visible change.
    return picture.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def _why_unknown(source: Path | bytes) -> str:
    """Tell an empty file from one of another kind."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    return "not a picture in a known format" if size else "empty file"


def _one_line(error: BaseException) -> str:
    """Return the reason in one line, without the file's name."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__

"""Folders that are whole or absent, and files that are what their record says."""

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ensembles.errors import BundleError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Let the caller fill a hidden folder, then give it its name in one step.

    What stood under that name is gone afterwards. Should the block fail, or the machine, the name
    still leads to what was there before.

    Args:
        folder: The name to fill; its parents are made.

    Yields:
        An empty folder beside it.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = folder.parent / f".{folder.name}.{uuid4().hex}.tmp"
    hidden.mkdir()
    try:
        yield hidden
        for path in [hidden, *filter(Path.is_dir, hidden.rglob("*"))]:
            _sync(path)
        if folder.is_dir() and any(folder.iterdir()):
            _exchange(hidden, folder)
        else:
            hidden.replace(folder)
        _sync(folder.parent)
    finally:
        # After an exchange, the hidden name holds the old folder.
        shutil.rmtree(hidden, ignore_errors=True)


def write_file(path: Path, content: bytes) -> str:
    """Write a file to the disk itself.

    Args:
        path: The file; its folder must exist.
        content: What to write.

    Returns:
        The SHA-256 of the content, in hexadecimal digits.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def read_file(folder: Path, name: str, *, max_bytes: int) -> bytes:
    """Read a plain file that lies in a folder, not one that a link leads to.

    Args:
        folder: Where the file must be; may itself be reached through a link.
        name: Path of the file relative to the folder.
        max_bytes: A larger file is refused unread.

    Returns:
        The content.

    Raises:
        BundleError: The file is missing, not a plain file, too large, or cannot be read.
    """
    expected = folder.resolve() / name
    try:
        if expected.resolve(strict=True) != expected or not expected.is_file():
            raise BundleError(f"{folder}: {name} is a link or not a plain file.")
        if expected.stat().st_size > max_bytes:
            raise BundleError(f"{folder}: {name} is larger than {max_bytes} bytes.")
        return expected.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: {name} is missing.") from error
    except (OSError, RuntimeError) as error:  # a circle of links
        raise BundleError(f"{folder}: {name} cannot be read: {error}.") from error


def read_recorded_file(folder: Path, name: str, *, n_bytes: int, sha256: str) -> bytes:
    """Read a file whose size and hash are known.

    Raises:
        BundleError: As `read_file`, or the content is not the recorded one.
    """
    content = read_file(folder, name, max_bytes=n_bytes)
    if len(content) != n_bytes:
        raise BundleError(f"{folder}: {name} has {len(content)} bytes instead of {n_bytes}.")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(f"{folder}: {name} was changed: its SHA-256 is not the manifest's.")
    return content


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders; Python has no call for it, so ask the C library of Linux."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(new), os.fsencode(old)
    if swap and not swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        return
    # A file system without exchange, such as NFS: for a moment the name leads nowhere.
    aside = old.parent / f"{new.name}.old"
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

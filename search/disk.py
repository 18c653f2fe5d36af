"""How much room is on a disk, and what a full one looks like to those who write on it."""

import errno
import os
import shutil
import sqlite3
import threading
from pathlib import Path

_SHORT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PROBE_BYTES = 1 << 16


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write on the disk of a folder."""
    return shutil.disk_usage(folder).free


def can_write(folder: Path, n_bytes: int) -> bool:
    """Try whether so many bytes can be written, and give them back.

    A quota is not always part of what a disk calls free.

    Raises:
        OSError: The folder cannot be written for another reason.
    """
    probe = folder / f".room.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with probe.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        if error.errno not in _SHORT_OF_ROOM:
            raise
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


def is_full(error: BaseException, folder: Path) -> bool:
    """Tell whether something could not be written for want of room.

    Args:
        error: Of the operating system or of SQLite.
        folder: Where it was written. SQLite says no more than `disk I/O error` of a quota, or of
            its shared index: then it is tried.
    """
    if isinstance(error, OSError):
        return error.errno in _SHORT_OF_ROOM
    if not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_FULL or (
        code == sqlite3.SQLITE_IOERR and not can_write(folder, _PROBE_BYTES)
    )


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes for people.

    >>> [format_bytes(n) for n in (0, 999, 65_000, 1_234_567, 72_900_000_000)]
    ['0 B', '999 B', '65 kB', '1.2 MB', '72.9 GB']
    """
    for unit, size, form in (("GB", 1e9, ".1f"), ("MB", 1e6, ".1f"), ("kB", 1e3, ".0f")):
        if n_bytes >= size:
            return f"{n_bytes / size:{form}} {unit}"
    return f"{n_bytes:.0f} B"

"""The log of a study: one JSON document a line in its folder, warnings on stderr."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import optuna

from search.disk import is_full
from search.errors import ConfigError

_MAX_UNWRITTEN_BYTES = 1 << 20


class _JsonLines(logging.Formatter):
    """One JSON document for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


class _WholeLines(logging.Handler):
    """Appends each line at once; what a full disk does not take waits, and is no trouble.

    Python's own handler would write a traceback onto the screen for each line.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        super().__init__()
        self._folder = path.parent
        self._unwritten = bytearray()

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line, after those that could not be written before."""
        try:
            line = f"{self.format(record)}\n".encode()
            if len(self._unwritten) + len(line) <= _MAX_UNWRITTEN_BYTES:
                self._unwritten += line
            self._write()
        except OSError as error:
            if not is_full(error, self._folder):
                self.handleError(record)
        except (TypeError, ValueError):  # of a message and its arguments, or a closed file
            self.handleError(record)

    def close(self) -> None:
        """Close the file, after what could not be written before."""
        with suppress(OSError, ValueError):
            self._write()
        self._file.close()
        super().close()

    def _write(self) -> None:
        """Append all lines that wait, or none: other processes would go on within a half one."""
        descriptor = self._file.fileno()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            size = os.fstat(descriptor).st_size
            if self._file.write(self._unwritten) == len(self._unwritten):
                self._unwritten.clear()
            else:
                os.ftruncate(descriptor, size)
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def logged_to_file(path: Path) -> Iterator[None]:
    """Send the log of this process to a file until the block ends; see `log_to_file`.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        handler = log_to_file(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}.") from error
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def log_to_file(path: Path) -> logging.Handler:
    """Send the log of this process, Optuna's included, to a file that is only appended to.

    Args:
        path: The file; its folder must exist. Several processes may append to it.

    Returns:
        The handler, for `logging.getLogger().removeHandler`.
    """
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    handler = _WholeLines(path)
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler

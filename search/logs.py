"""The log of a study: one JSON document a line in its folder, warnings on stderr."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import optuna


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


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Send the log of this process to a file until the block ends; see `log_to_file`."""
    handler = log_to_file(path)
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
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler

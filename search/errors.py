"""The errors of this package; `cli.py` turns each into one line and an exit code."""


class SearchError(Exception):
    """The job failed: exit code 1."""


class ConfigError(SearchError):
    """A flag, a file or a value that cannot be used: exit code 2."""


class DataError(ConfigError):
    """Images or labels that cannot be searched on: exit code 2."""


class NothingToDoError(SearchError):
    """No such study, no finished trial, no image: exit code 3."""


class StorageError(SearchError):
    """The study's database cannot be opened or used: exit code 1."""


class DiskFullError(StorageError):
    """There is no room on the disk for what must be written: exit code 1."""


def in_one_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    message = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {message}"

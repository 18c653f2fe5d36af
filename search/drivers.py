"""SQLite's and PostgreSQL's own connections under one roof, and what their errors mean.

To open a database through Optuna and SQLAlchemy takes half a second; with the drivers alone it
takes milliseconds.
"""

import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from search.errors import ConfigError
from search.location import Location, Server

BUSY_TIMEOUT_SECONDS = 120
CONNECT_TIMEOUT_SECONDS = 10
# Both sides of a connection find out within a minute that the other has gone, a host without power
# included; the defaults of the system are two hours.
CONNECT_ARGUMENTS: Mapping[str, object] = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "application_name": "concertino",
}
_HINTS: Mapping[str, str] = {
    "malformed": "put back a copy, or save what is left of it with `sqlite3 FILE .recover`",
    "disk is full": "free some space, then `python -m search resume` goes on",
    "readonly": "expected a file and a folder that can be written",
    "unable to open database file": "expected a file and a folder that can be read and written",
    "is locked": f"another process has held it for more than {BUSY_TIMEOUT_SECONDS} s",
    "Connection refused": "no server listens there",
    "no password supplied": "put it into PGPASSWORD or ~/.pgpass",
    "password authentication failed": "PGPASSWORD, ~/.pgpass or the URL hold another one",
    "permission denied for schema": "as its owner: GRANT CREATE, USAGE ON SCHEMA public TO USER",
    "does not exist": "`createdb` makes a database, `createuser` a user",
    "too many": "raise the server's max_connections, or start fewer workers",
    "remaining connection slots": "raise the server's max_connections, or start fewer workers",
}
"""From a database's words to what can be done."""
# Of PostgreSQL: connection lost, deadlock, server full, starting or ending, lock not given.
_PASSING = ("08", "40", "53300", "57P", "55P03")
_LASTING = ("password", "does not exist", "pg_hba.conf", "could not translate host name")
"""Of errors that say that there is no connection: what will be so in a minute too."""


@dataclass(frozen=True)
class Connection:
    """A connection of a driver; queries are written alike for both."""

    driver: Any
    is_server: bool

    def execute(self, query: str, values: Sequence[object] = ()) -> Any:
        """Run a query in which `?` stands for a value.

        Returns:
            The driver's cursor, which gives rows.
        """
        written = query.replace("?", "%s") if self.is_server else query
        return self.driver.execute(written, values)

    def among(self, ids: Iterable[int]) -> tuple[str, object]:
        """Return a condition such as `IN (...)` with one `?`, and the value for it.

        However many the ids are, they are one value: both databases limit the number of values.
        """
        if self.is_server:
            return "= ANY(?)", list(ids)
        return "IN (SELECT value FROM json_each(?))", json.dumps(list(ids))


def connect(location: Location) -> Connection:
    """Open a connection of its own; nothing is made where there is nothing.

    Raises:
        ConfigError: The driver is not installed.
        sqlite3.Error: The file cannot be opened.
        psycopg.Error: The server cannot be reached, or does not let us in.
    """
    if isinstance(location, Server):
        require_driver()
        import psycopg  # noqa: PLC0415  # only where it is used, and installed

        arguments: dict[str, Any] = dict(CONNECT_ARGUMENTS)
        return Connection(psycopg.connect(location.url, **arguments), is_server=True)
    # `rw`, since without it SQLite would make a file that has gone meanwhile.
    mode = "mode=ro&immutable=1" if is_frozen(location) else "mode=rw"
    name = f"file:{quote(str(location.path))}?{mode}"
    driver = sqlite3.connect(name, uri=True, timeout=BUSY_TIMEOUT_SECONDS)
    return Connection(driver, is_server=False)


def is_frozen(location: Location) -> bool:
    """Tell whether a database lies, complete, where nothing can be written.

    SQLite cannot read a database with a write-ahead log there, unless it is told that nobody
    writes. What is in a log that is not empty would then be missed.
    """
    if isinstance(location, Server) or os.access(location.path.parent, os.W_OK):
        return False
    wal = location.path.with_name(f"{location.path.name}-wal")
    return not wal.exists() or wal.stat().st_size == 0


def is_no_database(error: BaseException) -> bool:
    """Tell whether SQLite says that a file is something else."""
    cause = driver_error_of(error)
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB


def require_driver() -> None:
    """Refuse a server where its driver is not installed.

    Raises:
        ConfigError: With the command that installs it.
    """
    try:
        import psycopg  # noqa: F401, PLC0415
    except ImportError as error:
        raise ConfigError(
            f"storage: PostgreSQL needs its driver ({error}); "
            'python -m pip install "concertino[postgresql]"'
        ) from error


def driver_errors() -> tuple[type[Exception], ...]:
    """Return what the drivers raise; PostgreSQL's is not loaded for it."""
    psycopg = sys.modules.get("psycopg")
    return (sqlite3.Error, psycopg.Error) if psycopg else (sqlite3.Error,)


def driver_error_of(error: BaseException) -> Exception | None:
    """Return the error of the driver behind one of SQLAlchemy or Optuna, if there is one."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, driver_errors()):
            return link
        link = getattr(link, "orig", None) or link.__cause__
    return None


def may_pass(error: Exception) -> bool:
    """Tell whether the same may work a little later: a busy file, a server that starts again."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
    state = getattr(error, "sqlstate", None)
    if state is None:  # the server did not answer at all, or not any more
        is_connection = type(error).__name__ in ("OperationalError", "ConnectionTimeout")
        return is_connection and not any(words in str(error) for words in _LASTING)
    return str(state).startswith(_PASSING)


def explain(error: BaseException) -> str:
    """Return the first line of what a library said of a database, and what can be done."""
    original = getattr(error, "orig", None) or error  # SQLAlchemy wraps the error of the driver
    line = (str(original).strip() or repr(original)).splitlines()[0].rstrip(".")
    return "; ".join([line, *(hint for words, hint in _HINTS.items() if words in line)])

"""Where the trials of a study are stored: SQLite in its folder, or a PostgreSQL server.

The one place that knows. A folder without a note has SQLite; a folder with one has the URL that
the note holds. All other files of a study (weights, predictions, the log) lie in its folder in
both cases.

A password is kept only where it was part of the URL, in a note that nobody else can read; it is
shown nowhere. One in `PGPASSWORD` or `~/.pgpass` is found by PostgreSQL's own library, and kept
by nobody.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from search.errors import ConfigError, StorageError
from search.paths import StudyPaths, written_whole

EXPECTED = "an URL such as postgresql://USER@HOST:5432/DATABASE"
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True)
class Server:
    """A PostgreSQL database; as text it shows no password."""

    url: str = field(repr=False)
    """As PostgreSQL's own programs take it: `postgresql://USER@HOST:5432/DATABASE`."""

    def __str__(self) -> str:
        """Return the URL with its password masked."""
        return masked(self.url)

    @property
    def bare_url(self) -> str:
        """The URL without a password."""
        return _with_password(self.url, "")

    @property
    def url_for_sqlalchemy(self) -> str:
        """The same with the name of the driver, which SQLAlchemy wants."""
        return self.url.replace("postgresql://", "postgresql+psycopg://", 1)

    def is_same_place(self, other: "Server") -> bool:
        """Tell whether two URLs differ in nothing but a password."""
        return self.bare_url == other.bare_url


@dataclass(frozen=True)
class SQLiteFile:
    """A database in the folder of its study."""

    path: Path

    def __str__(self) -> str:
        """Return the file's name."""
        return str(self.path)


Location: TypeAlias = Server | SQLiteFile


def parse_server(text: str) -> Server:
    """Read the URL of a PostgreSQL database.

    Args:
        text: With one of the schemes `postgresql`, `postgres` or `postgresql+psycopg`.

    Raises:
        ConfigError: It is something else; no password is in the message.
    """
    scheme, colon, rest = text.partition("://")
    if scheme.startswith("sqlite"):
        raise ConfigError(
            f"expected {EXPECTED}, got {text!r}; SQLite needs no URL: it is the default, and lies "
            "in the study's folder, which --studies chooses."
        )
    if not _is_clear(text):  # shown to nobody, since who knows which part of it is the password
        raise ConfigError(
            f"expected {EXPECTED}, got one that cannot be read; a password with special "
            "characters is written with %40 for @, %2F for / and so on."
        )
    if scheme not in _SCHEMES or not colon or not urlsplit(text).path.strip("/"):
        raise ConfigError(f"expected {EXPECTED}, got {masked(text)!r}.")
    return Server(f"postgresql://{rest}")


def _is_clear(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    return port != 0 and not parts.fragment and "@" not in parts.path


def masked(url: str) -> str:
    """Return an URL with its password masked.

    >>> masked("postgresql://ann:secret@host:5432/db?password=x&sslmode=require")
    'postgresql://ann:***@host:5432/db?sslmode=require&password=***'
    """
    return _with_password(url, "***")


def _with_password(url: str, password: str) -> str:
    """Put another password in the place of one that is there; an empty one takes it out."""
    parts = urlsplit(url)
    names, at, host = parts.netloc.rpartition("@")
    user, colon, _ = names.partition(":")
    netloc = f"{user}:{password}@{host}" if colon and password else f"{user}{at}{host}"
    words = [word for word in parts.query.split("&") if word]
    others = [word for word in words if not word.startswith("password=")]
    if password and len(others) < len(words):
        others.append(f"password={password}")
    query = f"?{'&'.join(others)}" if others else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}" if parts.scheme else url


def location_of(paths: StudyPaths) -> Location:
    """Return where the trials of a study are stored, whether it is there or not.

    Raises:
        StorageError: The note in its folder cannot be read.
    """
    if not paths.storage_note.is_file():
        return SQLiteFile(paths.database)
    try:
        return parse_server(paths.storage_note.read_text(encoding="utf-8").strip())
    except (OSError, ValueError, ConfigError) as error:
        raise StorageError(f"{paths.storage_note}: cannot be read: {error}") from error


def note_location(paths: StudyPaths, location: Location) -> None:
    """Write down where the trials of a study are stored; from then on, all commands look there."""
    if isinstance(location, SQLiteFile):
        paths.storage_note.unlink(missing_ok=True)
        return
    with written_whole(paths.storage_note) as temporary:
        has_password = location.url != location.bare_url
        temporary.touch(mode=0o600 if has_password else 0o644)
        temporary.write_text(f"{location.url}\n", encoding="utf-8")


def has_study(paths: StudyPaths) -> bool:
    """Tell whether a folder holds a study; one on a server is not asked for there."""
    return paths.storage_note.is_file() or paths.database.is_file()


def settle_location(paths: StudyPaths, given: str | None) -> Location:
    """Return where a study is, or shall be, stored.

    Args:
        paths: Files of the study.
        given: URL that the user names, if any.

    Raises:
        ConfigError: The study is stored elsewhere already.
        StorageError: The note in its folder cannot be read.
    """
    there = location_of(paths)
    if given is None:
        return there
    try:
        wanted = parse_server(given)
    except ConfigError as error:
        raise ConfigError(f"storage: {error}") from None
    if not has_study(paths):
        return wanted
    if isinstance(there, Server) and there.is_same_place(wanted):
        return wanted if wanted.url != wanted.bare_url else there  # whose password may be kept
    raise ConfigError(
        f"storage: study {paths.name!r} is stored in {there}, got {wanted}; "
        f"`python -m search copy {paths.name} --to URL` moves it, --name starts another one; "
        "hosts that share a folder need the same URL."
    )

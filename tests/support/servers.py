"""A PostgreSQL server of its own for the tests, on this machine alone."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from runs import until

QUOTED = "a%20b%2Fc%40%25d"
"""Password of the user, as it is written in an URL."""
_SETTINGS = {
    "fsync": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "16MB",
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running server; its user `ann` needs a password."""

    port: int
    process: "subprocess.Popen[bytes]"
    _numbers: Iterator[int] = field(default_factory=count)

    def url(self, database: str = "postgres", *, password: str = QUOTED) -> str:
        user = f"ann:{password}" if password else "ann"
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        import psycopg  # noqa: PLC0415  # not installed everywhere

        with closing(psycopg.connect(self.url(database), autocommit=True)) as connection:
            connection.execute(statement.encode())

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        name = f"empty{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def throw_out(self, url: str) -> None:
        """Break all connections to a database, as a server does that is started anew."""
        name = url.rpartition("/")[2]
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "  # noqa: S608  # our own name
            f"WHERE datname = '{name}'"
        )


def find_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, where Debian puts them or on the path."""
    folders = list(Path("/usr/lib/postgresql").glob("*/bin"))
    if (found := shutil.which("initdb")) is not None:
        folders.append(Path(found).resolve().parent)
    whole = [folder for folder in sorted(folders) if (folder / "initdb").exists()]
    return whole[-1] if whole else None


@contextmanager
def running_cluster(programs: Path) -> Iterator[Cluster]:
    """Make and start a server; it ends with the block, and its files are removed."""
    with tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as name:
        folder, password_file = Path(name), Path(name) / "password"
        password_file.write_text(unquote(QUOTED), encoding="utf-8")
        account = _account(folder)
        data = folder / "data"
        user = ("--username=ann", "--auth=scram-sha-256", f"--pwfile={password_file}")
        subprocess.run(
            [programs / "initdb", "-D", data, "--no-sync", "--encoding=UTF8", "--locale=C", *user],
            check=True,
            capture_output=True,
            cwd="/",
            **account,
        )
        port = _free_port()
        settings = [word for item in _SETTINGS.items() for word in ("-c", "=".join(item))]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-p", str(port), *settings],
                stdout=log,
                stderr=log,
                cwd="/",
                **account,
            )
        try:
            until(lambda: _answers(process, port, folder / "log"), seconds=60)
            yield Cluster(port=port, process=process)
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for who is connected
            process.wait(timeout=60)


def _account(folder: Path) -> dict[str, Any]:
    """Return what lets a program run as somebody else: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    for path in (folder, *folder.iterdir()):
        os.chown(path, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _answers(process: "subprocess.Popen[bytes]", port: int, log: Path) -> bool:
    assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
    import psycopg  # noqa: PLC0415

    try:
        psycopg.connect(f"postgresql://ann:{QUOTED}@127.0.0.1:{port}/postgres").close()
    except psycopg.OperationalError:
        return False
    return True

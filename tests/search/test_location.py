import stat
from pathlib import Path

import pytest

from search.errors import ConfigError, StorageError
from search.location import (
    Server,
    SQLiteFile,
    has_study,
    location_of,
    note_location,
    parse_server,
    settle_location,
)
from search.paths import StudyPaths

HIDDEN = "postgresql://ann:se%40cret@db.example:5432/trials"
BARE = "postgresql://ann@db.example:5432/trials"


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    paths = StudyPaths(tmp_path / "one")
    paths.folder.mkdir()
    return paths


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_server_has_one_url_whatever_it_was_called(scheme: str) -> None:
    server = parse_server(f"{scheme}://ann@db.example/trials?sslmode=require")

    assert server.url == "postgresql://ann@db.example/trials?sslmode=require"
    assert server.url_for_sqlalchemy.startswith("postgresql+psycopg://ann@db.example/")


@pytest.mark.parametrize("text", [HIDDEN, f"{BARE}?password=se%40cret&sslmode=require"])
def test_a_password_is_shown_nowhere(text: str) -> None:
    server = parse_server(text)

    assert "cret" not in f"{server} {server!r} {server.bare_url}"
    assert "***" in str(server)
    assert server.is_same_place(parse_server(text.replace("cret", "other")))
    assert not server.is_same_place(parse_server(text.replace("trials", "others")))


def test_a_socket_is_a_server_too() -> None:
    url = "postgresql:///trials?host=/var/run/postgresql"

    assert parse_server(url).bare_url == str(parse_server(url)) == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected an URL such as postgresql://USER@HOST:5432/DATABASE, got ''"),
        ("mysql://ann:secret@h/d", r"got 'mysql://ann:\*\*\*@h/d'"),
        ("postgresql+psycopg2://h/d", "got 'postgresql"),
        ("postgresql://db.example", "got 'postgresql://db.example'"),
        ("sqlite:///secret.db", "SQLite needs no URL: it is the default"),
        ("postgresql://ann:se#cret@h/d", "got one that cannot be read; a password with special"),
        ("postgresql://ann:12/secret@h/d", "got one that cannot be read"),
        ("ann:secret@h/d", "got one that cannot be read"),
        ("postgresql://h:99999/d", "got one that cannot be read"),
    ],
)
def test_what_is_no_server_is_refused_without_its_password(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_server(text)

    assert "cret@" not in str(caught.value)


def test_a_folder_without_a_note_has_sqlite(paths: StudyPaths) -> None:
    assert location_of(paths) == SQLiteFile(paths.database)
    assert not has_study(paths)


def test_a_noted_place_is_found_again(paths: StudyPaths) -> None:
    note_location(paths, Server(HIDDEN))

    assert location_of(paths) == Server(HIDDEN)
    assert has_study(paths)

    note_location(paths, SQLiteFile(paths.database))

    assert location_of(paths) == SQLiteFile(paths.database)


@pytest.mark.parametrize(("url", "others"), [(HIDDEN, 0), (BARE, stat.S_IRGRP | stat.S_IROTH)])
def test_only_a_note_with_a_password_is_hidden_from_others(
    paths: StudyPaths, url: str, others: int
) -> None:
    note_location(paths, Server(url))

    assert paths.storage_note.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) == others


def test_a_note_that_is_no_url_is_an_error(paths: StudyPaths) -> None:
    paths.storage_note.write_text("on that other machine", encoding="utf-8")

    with pytest.raises(StorageError, match=r"storage\.url: cannot be read: expected an URL such"):
        location_of(paths)


def test_a_study_stays_where_it_is_and_may_have_another_password(paths: StudyPaths) -> None:
    assert settle_location(paths, None) == SQLiteFile(paths.database)
    assert settle_location(paths, BARE) == Server(BARE)

    note_location(paths, Server(BARE))

    assert settle_location(paths, None) == Server(BARE)
    assert settle_location(paths, HIDDEN) == Server(HIDDEN)
    with pytest.raises(
        ConfigError, match=r"is stored in postgresql://ann@db\.example:5432/trials"
    ):
        settle_location(paths, "postgresql://elsewhere/trials")


def test_a_study_on_a_file_is_not_sought_on_a_server(paths: StudyPaths) -> None:
    paths.database.touch()

    with pytest.raises(ConfigError, match=r"one/study\.db, got postgresql://.*search copy one"):
        settle_location(paths, BARE)

import ctypes
from pathlib import Path

import pytest

from ensembles.errors import BundleError
from ensembles.folders import new_folder, read_file, read_recorded_file, write_file


def fill(folder: Path, content: str) -> None:
    with new_folder(folder) as hidden:
        write_file(hidden / "file", content.encode())


def fail_halfway(folder: Path) -> None:
    with new_folder(folder) as hidden:
        write_file(hidden / "file", b"half")
        raise KeyboardInterrupt


def test_nothing_is_seen_before_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "new") as hidden:
        write_file(hidden / "file", b"content")
        assert not (tmp_path / "deep" / "new").exists()

    assert (tmp_path / "deep" / "new" / "file").read_bytes() == b"content"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_a_failed_block_leaves_the_old_folder_and_no_trace(tmp_path: Path) -> None:
    fill(tmp_path / "new", "old")

    with pytest.raises(KeyboardInterrupt):
        fail_halfway(tmp_path / "new")

    assert (tmp_path / "new" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


class LibraryWithoutExchange:
    """A C library as of a system that cannot swap two names."""


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_old_folder_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, can_exchange: bool
) -> None:
    fill(tmp_path / "new", "old")
    (tmp_path / "new" / "leftover").write_text("")
    if not can_exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: LibraryWithoutExchange())

    fill(tmp_path / "new", "fresh")

    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == {
        "file": "fresh"
    }
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")

    fill(tmp_path / "link", "fresh")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "fresh"


def test_a_file_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "folder").mkdir()

    with pytest.raises(BundleError, match="is a link or not a plain file"):
        read_file(tmp_path / "folder", "../secret", max_bytes=100)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    sha256 = write_file(tmp_path / "file", b"12345")

    assert read_file(tmp_path, "file", max_bytes=5) == b"12345"
    assert read_recorded_file(tmp_path, "file", n_bytes=5, sha256=sha256) == b"12345"
    with pytest.raises(BundleError, match="file is larger than 4 bytes"):
        read_file(tmp_path, "file", max_bytes=4)
    with pytest.raises(BundleError, match="file has 5 bytes instead of 6"):
        read_recorded_file(tmp_path, "file", n_bytes=6, sha256=sha256)
    with pytest.raises(BundleError, match="file was changed"):
        read_recorded_file(tmp_path, "file", n_bytes=5, sha256="0" * 64)

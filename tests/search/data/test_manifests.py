import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ensembles.inputs import ImageInput
from search.data.decoding import decode_images
from search.data.listing import GIVEN
from search.data.manifests import read_manifest
from search.errors import DataError

MakePictures = Callable[..., Path]


@pytest.fixture
def table(make_pictures: MakePictures) -> Path:
    return make_pictures("1.png", "sub/2.png", "3.png") / "table.csv"


def test_paths_are_relative_to_the_table(table: Path) -> None:
    table.write_text(
        f"path,label,colour\n1.png,dog,red\nsub/2.png,cat,\n{table.parent}/3.png,dog,"
    )

    listing = read_manifest(table)

    assert listing.class_names == ("cat", "dog")
    assert listing.labels.tolist() == [1, 0, 1]
    assert listing.given.tolist() == [0, 0, 0]
    assert listing.groups is None
    assert listing.load(1) == table.parent / "sub" / "2.png"
    assert listing.load(2) == table.parent / "3.png"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    "columns", [("file_name", "class"), ("Image", "LABEL"), ("path", "label")]
)
def test_columns_go_by_many_names(table: Path, separator: str, columns: tuple[str, str]) -> None:
    lines = [columns, ("1.png", "a"), ("sub/2.png", "b")]
    table.write_text("\n".join(separator.join(line) for line in lines), encoding="utf-8-sig")

    assert read_manifest(table).labels.tolist() == [0, 1]


def test_splits_and_groups_are_read(table: Path) -> None:
    rows = "1.png,a,train,p1\nsub/2.png,b,,p1\n3.png,a,Validation,\n1.png,b,test,\n"
    table.write_text("path,label,split,group\n" + rows)

    listing = read_manifest(table)

    assert [GIVEN[code] for code in listing.given] == ["train", "train", "val", "test"]
    assert listing.groups is not None
    assert listing.groups[0] == listing.groups[1]
    assert len(set(listing.groups.tolist())) == 3


def test_an_empty_split_column_gives_no_roles(table: Path) -> None:
    table.write_text("path,label,split\n1.png,a,\n3.png,b,\n")

    assert read_manifest(table).given.tolist() == [0, 0]


def test_a_changed_picture_changes_the_signature(table: Path) -> None:
    table.write_text("path,label\n1.png,a\n3.png,b\ngone.png,b\n")
    before = read_manifest(table).signature

    assert read_manifest(table).signature == before
    (table.parent / "3.png").write_bytes(b"other")
    assert read_manifest(table).signature != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; expected a line of column names such as path,label"),
        ("path,label\n", r"has column names \(path, label\) but no images"),
        ("id,breed\n1,dog\n", r"no column 'path' or 'image' .* or 'file'; found id, breed\."),
        ("path,breed\n1.png,dog\n", "no column 'label' or 'class' .*; found path, breed"),
        ("path,label\n1.png,a\n3.png,\n", "line 3: 'label' is empty"),
        ("path,label\n1.png,a\n,b\n", "line 3: 'path' is empty"),
        ("path,label\n1.png,a\n3.png\n", "line 3: 'label' is empty"),
        ("path,label,split\n1.png,a,holdout\n", "1.png: unknown split 'holdout'; expected train"),
        ("path,label\nx.png,a\ny.png,b\n", r"none of its 2 files is there; .*x\.png"),
    ],
)
def test_tables_that_say_too_little_are_refused(table: Path, text: str, message: str) -> None:
    table.write_text(text)

    with pytest.raises(DataError, match=message):
        read_manifest(table)


def test_what_is_no_table_is_refused(table: Path) -> None:
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        read_manifest(table)

    table.write_text("path,label\n" + "x" * 200_000 + ",a\n")
    with pytest.raises(DataError, match="line 2: field larger than field limit"):
        read_manifest(table)


def test_a_pipe_in_a_table_is_left_out_and_not_opened(table: Path, tmp_path: Path) -> None:
    os.mkfifo(table.parent / "pipe.png")
    table.write_text("path,label\n1.png,a\npipe.png,b\n", encoding="utf-8")
    listing = read_manifest(table)

    decoded = decode_images(
        listing, ImageInput(size=8, channels=3), path=tmp_path / "images.npy", pad=1
    )

    assert decoded.rows.tolist() == [0]
    assert decoded.skipped == (("pipe.png", "not a regular file"),)

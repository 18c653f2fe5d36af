import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from search.data.folders import read_folder
from search.data.listing import GIVEN
from search.errors import DataError

MakePictures = Callable[..., Path]


def test_each_folder_is_a_class(make_pictures: MakePictures) -> None:
    root = make_pictures("dog/2.png", "dog/10.png", "cat/deep/1.jpg", ".git/x.png")
    (root / "dog" / "notes.txt").touch()

    listing = read_folder(root)

    assert listing.names == ["cat/deep/1.jpg", "dog/2.png", "dog/10.png"]
    assert listing.class_names == ("cat", "dog")
    assert listing.labels.tolist() == [0, 1, 1]
    assert listing.given.tolist() == [0, 0, 0]
    assert listing.groups is None
    assert listing.load(2) == root / "dog" / "10.png"


def test_numbered_classes_are_in_the_order_of_their_numbers(make_pictures: MakePictures) -> None:
    root = make_pictures("10/a.png", "9/a.png", "1/a.png")

    assert read_folder(root).class_names == ("1", "9", "10")


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_splits_become_given_roles(make_pictures: MakePictures, val: str) -> None:
    splits = ("train", val, "test")
    root = make_pictures(*(f"{split}/{name}/1.png" for split in splits for name in "ab"))

    listing = read_folder(root)

    roles = {
        name.split("/")[0]: GIVEN[code]
        for name, code in zip(listing.names, listing.given, strict=True)
    }
    assert roles == {"train": "train", val: "val", "test": "test"}
    assert listing.class_names == ("a", "b")


def test_a_train_is_a_class_among_vehicles(make_pictures: MakePictures) -> None:
    root = make_pictures("train/1.png", "bus/1.png")

    listing = read_folder(root)

    assert listing.class_names == ("bus", "train")
    assert listing.given.tolist() == [0, 0]


def test_what_lies_beside_the_splits_is_left_out_aloud(
    make_pictures: MakePictures, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_pictures("train/a/1.png", "train/b/1.png", "raw/c/1.png")

    with caplog.at_level(logging.WARNING):
        listing = read_folder(root)

    assert listing.class_names == ("a", "b")
    assert "not a split, left out: raw" in caplog.text


def test_a_changed_file_changes_the_signature(make_pictures: MakePictures) -> None:
    root = make_pictures("a/1.png", "b/1.png")
    before = read_folder(root).signature

    assert read_folder(root).signature == before
    (root / "a" / "1.png").write_bytes(b"other")
    assert read_folder(root).signature != before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "2.png"], "2 pictures, but no folders; expected one folder for each class"),
        (["test/a/1.png", "val/a/1.png"], "has test, val but no folder 'train'"),
        (["a/1.png"], "only one class, 'a'"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "class 'c' is in test but not"),
    ],
)
def test_folders_without_classes_are_refused(
    make_pictures: MakePictures, names: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_folder(make_pictures(*names)).check_trainable()


def test_an_empty_folder_and_an_empty_class_are_refused(
    tmp_path: Path, make_pictures: MakePictures
) -> None:
    (tmp_path / "empty").mkdir()
    root = make_pictures("a/1.png", "b/1.png")
    (root / "c").mkdir()

    with pytest.raises(DataError, match="no pictures and no folders; expected one folder for"):
        read_folder(tmp_path / "empty")
    with pytest.raises(DataError, match="c: no pictures in this class folder"):
        read_folder(root)
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        read_folder(tmp_path / "gone")


def test_a_table_beside_loose_pictures_is_suggested(make_pictures: MakePictures) -> None:
    root = make_pictures("1.png")
    (root / "labels.csv").touch()

    with pytest.raises(DataError, match=r"or give the manifest: --data .*labels\.csv"):
        read_folder(root)


def test_labels_and_names_go_together(make_pictures: MakePictures) -> None:
    root = make_pictures(*(f"{name}/{number}.png" for name in "cab" for number in range(3)))

    listing = read_folder(root)

    classes = np.array(listing.class_names)[listing.labels]
    assert [name.split("/")[0] for name in listing.names] == classes.tolist()

from pathlib import Path

import numpy as np
import pytest

from search.data.arrays import read_arrays, read_digits
from search.data.listing import GIVEN
from search.errors import DataError


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, **arrays: object) -> None:
    np.savez(path, allow_pickle=True, **{key: np.asarray(array) for key, array in arrays.items()})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.npz"


def test_digits_span_black_to_white() -> None:
    listing = read_digits()

    images = np.stack([np.asarray(listing.load(row)) for row in range(50)])

    assert len(listing.names) == 1797
    assert listing.class_names == tuple("0123456789")
    assert images.shape == (50, 8, 8)
    assert (images.min(), images.max()) == (0, 255)
    assert 128 in images  # 8 of 16 is 127.5, rounded to even


def test_both_customs_give_the_same_listing(tmp_path: Path) -> None:
    train, test = pixels(4, 5, 5), pixels(3, 5, 5)
    keras = {"x_train": train, "y_train": [0, 1, 0, 1], "x_test": test, "y_test": [0, 1, 1]}
    medmnist = {
        "train_images": train,
        "train_labels": [[0], [1], [0], [1]],
        "test_images": test,
        "test_labels": [[0], [1], [1]],
    }

    for number, arrays in enumerate((keras, medmnist)):
        save(tmp_path / f"{number}.npz", **arrays)
        listing = read_arrays(tmp_path / f"{number}.npz")

        assert listing.labels.tolist() == [0, 1, 0, 1, 0, 1, 1]
        assert [GIVEN[code] for code in listing.given] == ["train"] * 4 + ["test"] * 3
        np.testing.assert_array_equal(np.asarray(listing.load(3)), train[3])
        np.testing.assert_array_equal(np.asarray(listing.load(4)), test[0])


def test_channels_may_come_first(path: Path) -> None:
    images = pixels(4, 3, 6, 5)
    np.savez_compressed(path, x=images, y=[0, 1, 0, 1])

    listing = read_arrays(path)

    np.testing.assert_array_equal(np.asarray(listing.load(2)), images[2].transpose(1, 2, 0))
    assert listing.given.tolist() == [0] * 4


def test_labels_may_be_texts_or_numbers_with_gaps(path: Path) -> None:
    save(path, images=pixels(3, 5, 5), labels=["owl", "cat", "owl"])
    assert read_arrays(path).class_names == ("cat", "owl")

    save(path, images=pixels(3, 5, 5), labels=[7, 3, 7])
    assert read_arrays(path).class_names == ("3", "7")
    assert read_arrays(path).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels", [[1, 0, 1], ["cat", "owl", "cat"]])
def test_class_names_may_stand_in_the_file(path: Path, labels: list[object]) -> None:
    save(path, x=pixels(3, 5, 5), y=labels, class_names=["owl", "cat"])

    listing = read_arrays(path)

    assert listing.class_names == ("owl", "cat")
    assert listing.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": [1], "b": [2]}, "no images; found arrays a, b, expected x_train and y_train"),
        ({"x": pixels(2, 5, 5)}, "no labels 'y' beside the images"),
        ({"x": np.zeros((2, 5, 5)), "y": [0, 1]}, r"x must be uint8, got float64; .*255 \* x"),
        ({"x": np.zeros((2, 5, 5), int), "y": [0, 1]}, r"x must be uint8, got int64\."),
        ({"x": pixels(2, 5), "y": [0, 1]}, r"must be \(n, h, w\) or .* got \(2, 5\)"),
        ({"x": pixels(2, 5, 5, 2), "y": [0, 1]}, r"must be .*, got \(2, 5, 5, 2\)"),
        ({"x": pixels(2, 3, 5, 3), "y": [0, 1]}, "the channels may come first or last"),
        ({"x": pixels(2, 5, 5), "y": [0, 1, 1]}, "y must be one whole number or text for each"),
        ({"x": pixels(2, 5, 5), "y": np.eye(2)}, r"each of the 2 images, got float64 \(2, 2\)"),
        (
            {"x": pixels(2, 5, 5), "y": [0, 2], "class_names": ["a", "b"]},
            "labels 2 are not among the 2 class_names",
        ),
        (
            {"x": pixels(2, 5, 5), "y": ["a", "c"], "class_names": ["a", "b"]},
            "labels c are not among the 2 class_names",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    save(path, **arrays)

    with pytest.raises(DataError, match=message):
        read_arrays(path)


def test_pickled_objects_are_never_loaded(path: Path) -> None:
    save(path, x=pixels(2, 5, 5), y=np.array([0, "a"], dtype=object))

    with pytest.raises(DataError, match="y holds Python objects, which could run code"):
        read_arrays(path)


def test_a_broken_file_is_refused(path: Path) -> None:
    path.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"not a whole \.npz file"):
        read_arrays(path)

    save(path, x=pixels(2, 50, 50), y=[0, 1])
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="x cannot be read: Bad CRC-32"):
        read_arrays(path).load(0)

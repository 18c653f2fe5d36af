import gzip
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision

from search.data.listing import GIVEN
from search.data.torchvision_sets import SETS, read_torchvision
from search.errors import DataError

MakePictures = Callable[..., Path]


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write an array as MNIST's authors do: a magic number, sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()
    path.write_bytes(whole)
    path.with_suffix(".gz").write_bytes(gzip.compress(whole))


def test_mnist_is_read_from_its_own_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = np.arange(30) % 10
    for split, rows in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        raw = tmp_path / "MNIST" / "raw"
        write_idx(raw / f"{split}-images-idx3-ubyte", images[rows])
        write_idx(raw / f"{split}-labels-idx1-ubyte", labels[rows])

    listing = read_torchvision("mnist", root=tmp_path, download=False)

    assert [GIVEN[code] for code in listing.given] == ["train"] * 20 + ["test"] * 10
    assert listing.labels.tolist() == labels.tolist()
    assert listing.class_names[3] == "3 - three"
    for row in (0, 19, 20, 29):
        np.testing.assert_array_equal(np.asarray(listing.load(row)), images[row])


def test_cifar10_is_read_from_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    sums = {}
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        rows = slice(10 * number, 10 * number + 10)
        batch = {"data": pixels[rows].reshape(10, -1), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {"label_names": [f"class {number}" for number in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    for file in folder.iterdir():
        sums[file.name] = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    dataset = torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(dataset, "test_list", [[names[5], sums[names[5]]]])
    monkeypatch.setitem(dataset.meta, "md5", sums["batches.meta"])

    listing = read_torchvision("cifar10", root=tmp_path, download=False)

    assert listing.labels.tolist() == list(range(10)) * 6
    assert listing.class_names[9] == "class 9"
    assert listing.given.tolist() == [GIVEN.index("train")] * 50 + [GIVEN.index("test")] * 10
    np.testing.assert_array_equal(np.asarray(listing.load(55)), pixels[55].transpose(1, 2, 0))


def test_eurosat_is_read_from_its_own_folder(tmp_path: Path, make_pictures: MakePictures) -> None:
    root = make_pictures("Forest/1.jpg", "Forest/2.jpg", "River/1.jpg")
    (tmp_path / "eurosat").mkdir()
    root.rename(tmp_path / "eurosat" / "2750")

    listing = read_torchvision("eurosat", root=tmp_path, download=False)

    assert listing.class_names == ("Forest", "River")
    assert listing.labels.tolist() == [0, 0, 1]
    assert listing.given.tolist() == [0, 0, 0]
    signature = listing.signature
    (tmp_path / "eurosat" / "2750" / "River" / "2.jpg").write_bytes(b"new")
    assert read_torchvision("eurosat", root=tmp_path, download=False).signature != signature


def test_gtsrb_is_read_from_its_own_folder(tmp_path: Path, make_pictures: MakePictures) -> None:
    root = make_pictures(
        *("Training/00000/1.ppm", "Training/00001/1.ppm", "Final_Test/Images/00000.ppm")
    )
    (tmp_path / "gtsrb").mkdir()
    root.rename(tmp_path / "gtsrb" / "GTSRB")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")

    listing = read_torchvision("gtsrb", root=tmp_path, download=False)

    assert listing.class_names == ("0", "1")
    assert listing.labels.tolist() == [0, 1, 1]


def test_food101_is_read_from_its_own_folder(tmp_path: Path, make_pictures: MakePictures) -> None:
    root = make_pictures("images/pie/1.jpg", "images/soup/2.jpg", "images/soup/3.jpg")
    root.rename(tmp_path / "food-101")
    (tmp_path / "food-101" / "meta").mkdir()
    for split, files in (
        ("train", '{"pie": ["pie/1"], "soup": ["soup/2"]}'),
        ("test", '{"soup": ["soup/3"], "pie": []}'),
    ):
        (tmp_path / "food-101" / "meta" / f"{split}.json").write_text(files)

    listing = read_torchvision("food101", root=tmp_path, download=False)

    assert listing.class_names == ("pie", "soup")
    assert listing.labels.tolist() == [0, 1, 1]
    assert [GIVEN[code] for code in listing.given] == ["train", "train", "test"]


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_says_what_to_type(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"^{name} is not in .*; add --download, or --data-root"):
        read_torchvision(name, root=tmp_path, download=False)


def test_a_failed_download_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])

    with pytest.raises(DataError, match=r"mnist could not be downloaded to .*: \S.*") as caught:
        read_torchvision("mnist", root=tmp_path / "new", download=True)

    assert "\n" not in str(caught.value)

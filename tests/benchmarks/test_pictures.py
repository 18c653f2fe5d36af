from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import draw_folder

from search.data.folders import read_folder
from search.data.listing import GIVEN
from search.errors import ConfigError


@pytest.fixture
def pictures(load_script: Callable[[str], Any]) -> Any:
    return load_script("pictures")


def counted(folder: Path) -> dict[str, int]:
    given = [GIVEN[code] for code in read_folder(folder).given]
    return {name: given.count(name) for name in ("train", "val", "test")}


def test_drawn_images_have_ten_classes_of_equal_size(pictures: Any, tmp_path: Path) -> None:
    counts = {"train": 30, "val": 10, "test": 20}

    folder = pictures.make_folder(tmp_path / "drawn", counts, source=None)

    assert counted(folder) == counts
    assert len(read_folder(folder).class_names) == 10


def test_val_is_taken_from_train_and_shares_no_image_with_it(
    pictures: Any, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    draw_folder(source / "train", {"a": 6, "b": 6})
    draw_folder(source / "test", {"a": 2, "b": 2})

    folder = pictures.make_folder(
        tmp_path / "taken", {"train": 8, "val": 4, "test": 4}, source=source
    )

    assert counted(folder) == {"train": 8, "val": 4, "test": 4}
    names = {
        split: {path.name for path in folder.glob(f"{split}/a/*")} for split in ("train", "val")
    }
    assert not names["train"] & names["val"]


def test_too_few_images_and_no_classes_are_refused(pictures: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    draw_folder(source / "train", {"a": 2, "b": 2})

    with pytest.raises(ConfigError, match="has 2 images, too few"):
        pictures.make_folder(tmp_path / "1", {"train": 6}, source=source)
    with pytest.raises(ConfigError, match="test: expected one folder of images for each class"):
        pictures.make_folder(tmp_path / "2", {"test": 2}, source=source)

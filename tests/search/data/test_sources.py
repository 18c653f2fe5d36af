import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from search.data.sources import DataRequest, list_dataset
from search.errors import DataError

MakePictures = Callable[..., Path]


def test_a_name_a_folder_a_table_and_arrays_are_told_apart(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    root = make_pictures("a/1.png", "b/2.png")
    (root / "table.csv").write_text("path,label\na/1.png,x\nb/2.png,y\n")
    np.savez(tmp_path / "set.npz", x=np.zeros((2, 5, 5), np.uint8), y=[3, 4])

    found = {
        name: list_dataset(DataRequest(data=str(name))).class_names
        for name in ("Digits", root, root / "table.csv", tmp_path / "set.npz")
    }

    assert list(found.values()) == [tuple("0123456789"), ("a", "b"), ("x", "y"), ("3", "4")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("digitz", "no such folder, file or data set; did you mean 'digits'"),
        ("zzzz", "no such folder, file or data set; known are cifar10, .*, usps"),
        ("pictrues", "no such folder, file or data set; did you mean 'pictures'"),
        ("./pictrues", "no such file or folder; did you mean 'pictures'"),
        (" ", "--data: expected a folder, a file or a data set, got ' '"),
        ("./pictrues/x", "no such file or folder; pictrues is not there either"),
        ("pictures/tables.csv", "no such file or folder; did you mean 'pictures/table.csv'"),
        ("pictures/qq.csv", r"no such file or folder\."),
        ("pictures/set.zip", r"expected a folder, a \.csv or an \.npz file; unpack an archive"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_a_hint(
    make_pictures: MakePictures, monkeypatch: pytest.MonkeyPatch, data: str, message: str
) -> None:
    root = make_pictures("a/1.png")
    (root / "table.csv").touch()
    (root / "set.zip").touch()
    monkeypatch.chdir(root.parent)

    with pytest.raises(DataError, match=message):
        list_dataset(DataRequest(data=data))


def test_a_torchvision_name_is_looked_up_in_the_data_root(tmp_path: Path) -> None:
    request = DataRequest(data="Fashion_MNIST", data_root=tmp_path)

    with pytest.raises(DataError, match=f"fashion-mnist is not in {tmp_path}; add --download"):
        list_dataset(request)


def test_neither_torchvision_nor_scikit_learn_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, search.data.sources; print({'torchvision', 'sklearn'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"

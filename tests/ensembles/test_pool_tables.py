import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet, table

from ensembles.errors import EnsembleError
from ensembles.pool import Pool

HEADER = "model,image,label,cat,dog"
ROWS = ["b,x,dog,0.2,0.8", "a,y,cat,0.5,0.5", "a,x,dog,0.1,0.9", "b,y,cat,0.6,0.4"]


def write(path: Path, rows: list[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_table_is_sorted_by_model_and_first_sight_of_the_image(tmp_path: Path) -> None:
    pool = Pool.load(write(tmp_path / "x.csv", ROWS))

    assert pool.names == ("a", "b")
    assert pool.class_names == ("cat", "dog")
    assert pool.labels.tolist() == [1, 0]
    np.testing.assert_allclose(
        np.exp(pool.log_probabilities),
        [[[0.1, 0.9], [0.5, 0.5]], [[0.2, 0.8], [0.6, 0.4]]],
        rtol=1e-6,
    )


def test_a_parquet_table_is_read_like_a_csv_table(tmp_path: Path) -> None:
    cells = [row.split(",") for row in ROWS]
    parquet.write_table(
        table(
            {
                "model": [row[0] for row in cells],
                "image": [row[1] for row in cells],
                "label": [row[2] for row in cells],
                "cat": [float(row[3]) for row in cells],
                "dog": np.array([float(row[4]) for row in cells], dtype=np.float32),
            }
        ),
        tmp_path / "x.parquet",
    )

    pool = Pool.load(tmp_path / "x.parquet")

    expected = Pool.load(write(tmp_path / "x.csv", ROWS))
    assert (pool.names, pool.class_names) == (expected.names, expected.class_names)
    np.testing.assert_array_equal(pool.labels, expected.labels)
    np.testing.assert_allclose(pool.log_probabilities, expected.log_probabilities, rtol=1e-6)


def test_labels_may_be_places_and_trials_numbers(tmp_path: Path) -> None:
    parquet.write_table(
        table(
            {
                "model": [10, 10, 9, 9],
                "image": [7, 8, 7, 8],
                "label": [0, 1, 0, 1],
                "cat": [3.0, -1.0, 2.0, 0.0],
                "dog": [1.0, 0.5, 0.0, 4.0],
            }
        ),
        tmp_path / "x.parquet",
    )

    pool = Pool.load(tmp_path / "x.parquet")

    assert pool.names == ("9", "10")
    assert pool.labels.tolist() == [0, 1]
    assert pool.log_probabilities.argmax(axis=2).tolist() == [[0, 1], [0, 1]]


def test_labels_that_are_names_of_columns_are_not_places(tmp_path: Path) -> None:
    pool = Pool.load(write(tmp_path / "x.csv", ["a,x,1,0.2,0.8"], "model,image,label,1,0"))

    assert pool.labels.tolist() == [0]


def test_empty_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"\ufeff{HEADER}\r\n\r\na,x,dog,0.2,0.8\r\n", encoding="utf-8", newline="")

    assert Pool.load(path).n_images == 1


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], HEADER, "at least one row, got none"),
        (ROWS, "model,image,cat,dog,owl", "columns model, image, label .* got model, image, cat"),
        (ROWS, "model,image,label,cat", "at least 2 different classes"),
        (ROWS, "model,image,label,cat,cat", "at least 2 different classes"),
        (["a,x,dog,0.2"], HEADER, "line 2: 5 cells are expected, got 4"),
        (["a,x,dog,0.2,", "a,x"], HEADER, "line 2: could not convert string to float: ''"),
        ([*ROWS, ROWS[0]], HEADER, "model b has 2 rows for image x"),
        (ROWS[:3], HEADER, "model b has no row for 1 of 2 images, such as y"),
        (["a,x,dog,0.2,0.8", "b,x,cat,0.2,0.8"], HEADER, "image x has different labels"),
        (["a,x,owl,0.2,0.8"], HEADER, r"label owl is neither a class's column \(cat, dog\) nor"),
        (["a,x,2,0.2,0.8"], HEADER, "nor a number from 0 to 1"),
        (["a,x,dog,nan,0.8"], HEADER, "model a: logits of 1 of 1 images are not finite"),
    ],
)
def test_a_table_that_cannot_be_arranged_is_refused(
    tmp_path: Path, rows: list[str], header: str, message: str
) -> None:
    with pytest.raises(EnsembleError, match=f"x.csv: .*{message}"):
        Pool.load(write(tmp_path / "x.csv", rows, header))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(EnsembleError, match=r"x\.csv cannot be read as CSV"):
        Pool.load(tmp_path / "x.csv")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()

    with pytest.raises(EnsembleError, match="got none"):
        Pool.load(tmp_path / "x.csv")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR0")

    with pytest.raises(EnsembleError, match=r"x\.parquet cannot be read as parquet"):
        Pool.load(tmp_path / "x.parquet")


def test_a_parquet_column_of_words_is_refused(tmp_path: Path) -> None:
    parquet.write_table(
        table({"model": ["a"], "image": ["x"], "label": ["b"], "b": ["much"], "c": ["less"]}),
        tmp_path / "x.parquet",
    )

    with pytest.raises(EnsembleError, match="column does not hold numbers"):
        Pool.load(tmp_path / "x.parquet")


def test_parquet_without_its_extra_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").touch()

    with pytest.raises(EnsembleError, match=r"pip install 'concertino\[parquet\]'"):
        Pool.load(tmp_path / "x.parquet")

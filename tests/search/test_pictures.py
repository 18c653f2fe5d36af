import base64
import io
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from search.pictures import confusion_svg, curves_svg

SVG = "{http://www.w3.org/2000/svg}"
COUNTS = np.array([[8, 2, 0], [0, 10, 0], [1, 0, 4]])


def parse(picture: str) -> ET.Element:
    return ET.fromstring(picture)  # noqa: S314  # drawn by ourselves


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in parse(picture).iter(f"{SVG}text")]


def pixels(picture: str) -> np.ndarray:
    found = re.search('base64,([^"]+)', picture)
    assert found
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))


def history(*accuracies: float) -> list[dict[str, float]]:
    return [{"train_loss": 2.0, "log_loss": 1.0, "accuracy": value} for value in accuracies]


def test_each_cell_that_has_images_holds_their_number() -> None:
    written = texts(confusion_svg(COUNTS, ["cat", "dog", "owl"]))

    assert written[0] == "22 of 25 right (a row: a true class)"
    assert written[-5:] == ["8", "2", "10", "1", "4"]


def test_what_is_right_is_green_what_is_wrong_red_and_what_is_empty_white() -> None:
    cells = pixels(confusion_svg(COUNTS, ["cat", "dog", "owl"]))

    np.testing.assert_array_equal(cells[1, 1], [38, 139, 70])
    np.testing.assert_array_equal(cells[1, 0], [255, 255, 255])
    # 2 of 10: opacity 0.15 + 0.85 * 0.2 = 0.32 of (203, 65, 50) on white
    np.testing.assert_array_equal(cells[0, 1], [238, 194, 189])


def test_names_of_classes_cannot_break_the_picture() -> None:
    written = texts(confusion_svg(COUNTS, ["<b>&", '"x"', "]]>"]))

    assert {"<b>&", '"x"', "]]>"} <= set(written)


def test_many_classes_are_told_by_their_worst_confusions() -> None:
    counts = np.diag(np.full(40, 50))
    counts[3, 7] = 9
    counts[7, 3] = 2

    written = texts(confusion_svg(counts, [f"kind {number}" for number in range(40)]))

    assert written[1:] == ["9 x kind 3 taken for kind 7", "2 x kind 7 taken for kind 3"]


def test_a_class_without_images_is_a_white_row() -> None:
    cells = pixels(confusion_svg(np.array([[5, 0], [0, 0]]), ["cat", "dog"]))

    np.testing.assert_array_equal(cells[1], np.full((2, 3), 255))


@pytest.mark.parametrize("n_classes", [10, 100, 300])
def test_a_matrix_stays_small_whatever_the_number_of_classes(n_classes: int) -> None:
    generator = np.random.default_rng(0)
    counts = np.diag(np.full(n_classes, 40))
    np.add.at(counts, tuple(generator.integers(n_classes, size=(2, 2000))), 1)

    picture = confusion_svg(counts, [f"class number {number}" for number in range(n_classes)])

    assert len(picture) < 16_000


def test_curves_rise_with_the_accuracy_and_mark_the_best_round() -> None:
    picture = curves_svg(history(0.5, 0.75, 1.0), best_round=2)

    lines = parse(picture).findall(f"{SVG}polyline")
    heights = [float(point.split(",")[1]) for point in lines[-1].attrib["points"].split()]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])
    assert heights[0] > heights[2]  # y falls as the value rises
    assert "best: 2" in texts(picture)


def test_the_best_round_is_marked_where_its_point_is() -> None:
    picture = curves_svg(history(0.5, 0.75, 1.0), best_round=2)

    root = parse(picture)
    x = root.findall(f"{SVG}polyline")[0].attrib["points"].split()[1].split(",")[0]
    marks = [path.attrib["d"] for path in root.findall(f"{SVG}path") if "V" in path.attrib["d"]]
    assert [mark.split(",")[0] for mark in marks] == [f"M{x}"]


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_a_single_round_is_drawn_as_points(accuracy: float) -> None:
    picture = curves_svg(history(accuracy), best_round=1)

    assert len(parse(picture).findall(f"{SVG}circle")) == 3
    assert "nan" not in picture


def test_losses_that_are_all_zero_are_drawn_too() -> None:
    rows = [{"train_loss": 0.0, "log_loss": 0.0, "accuracy": 1.0}] * 2

    assert "nan" not in curves_svg(rows, best_round=1)

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import log_loss

from ensembles.bundle import load_bundle
from search.cli import main

WriteBundle = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
CLASSES = ("cat", "dog", "owl")


def draw(folder: Path, n_pictures: int, seed: int) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for number in range(n_pictures):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with 4 pictures of each class to train on and 3 to test on."""
    for place, name in enumerate(CLASSES):
        draw(tmp_path / "data" / "train" / name, 4, seed=place)
        draw(tmp_path / "data" / "test" / name, 3, seed=10 + place)
    return tmp_path / "data"


def evaluate(capsys: Capture, *words: object) -> tuple[int, dict[str, object]]:
    code = main(["evaluate", *map(str, words), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return code, document


def test_the_figures_are_those_of_the_test_split(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    folder = write_tiny_bundle(classes=CLASSES)

    code, document = evaluate(capsys, folder, "--data", pictures)

    files = [pictures / "test" / name / f"{n}.png" for name in CLASSES for n in range(3)]
    probabilities = load_bundle(folder).predict(files)
    labels = np.repeat([0, 1, 2], 3)
    predicted = probabilities.argmax(axis=1)
    assert (code, document["schema"], document["split"]) == (0, 1, "test")
    assert document["n_images"] == 9
    assert document["accuracy"] == pytest.approx((predicted == labels).mean())
    assert document["log_loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-5)
    confusion = np.zeros((3, 3), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    assert document["confusion"] == confusion.tolist()


def test_classes_are_matched_by_name_not_by_number(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    folder = write_tiny_bundle(classes=("owl", "yak", "dog", "cat"))

    _, document = evaluate(capsys, folder, "--data", pictures)

    classes = document["classes"]
    assert isinstance(classes, list)
    assert [(each["name"], each["n_images"]) for each in classes] == [
        ("owl", 3),
        ("yak", 0),
        ("dog", 3),
        ("cat", 3),
    ]


@pytest.mark.parametrize(("split", "n_images"), [("test", 9), ("train", 12), ("all", 21)])
def test_the_split_can_be_chosen(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture, split: str, n_images: int
) -> None:
    _, document = evaluate(
        capsys, write_tiny_bundle(classes=CLASSES), "--data", pictures, "--split", split
    )

    assert (document["split"], document["n_images"]) == (split, n_images)


def test_without_a_test_split_all_images_count(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    _, document = evaluate(capsys, write_tiny_bundle(classes=CLASSES), "--data", pictures / "test")

    assert (document["split"], document["n_images"]) == ("all", 9)


def test_a_split_that_is_not_there_is_named(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    words = ["evaluate", str(write_tiny_bundle(classes=CLASSES)), "--data", str(pictures)]

    assert main([*words, "--split", "val"]) == 2
    assert "no split 'val'; it has train, test" in capsys.readouterr().err


def test_classes_that_the_bundle_does_not_know_are_named(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    folder = write_tiny_bundle(classes=("cat", "dog"))

    assert main(["evaluate", str(folder), "--data", str(pictures)]) == 2
    assert "does not know the classes owl; it knows cat, dog" in capsys.readouterr().err


def test_averages_follow_from_the_classes(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    _, document = evaluate(capsys, write_tiny_bundle(classes=CLASSES), "--data", pictures)

    classes, averages = document["classes"], document["averages"]
    assert isinstance(classes, list)
    assert isinstance(averages, dict)
    recalls = [each["recall"] for each in classes]
    assert averages["macro"]["recall"] == pytest.approx(np.mean(recalls))
    # Each image counts once, so the mean recall is the accuracy.
    assert averages["weighted"]["recall"] == pytest.approx(document["accuracy"])
    assert averages["macro"]["f1"] == pytest.approx(document["macro_f1"])


@pytest.mark.parametrize(
    ("bar", "code"),
    [
        ("accuracy=0", 0),
        ("accuracy=1.01", 4),
        ("log_loss=100", 0),
        ("log_loss=0.001", 4),
        ("roc_auc=0", 0),
        ("roc_auc=1.01", 4),
    ],
)
def test_a_missed_bar_is_told_by_the_exit_code(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture, bar: str, code: int
) -> None:
    words = ["evaluate", str(write_tiny_bundle(classes=CLASSES)), "--data", str(pictures)]

    assert main([*words, "--fail-under", "accuracy=0", "--fail-under", bar]) == code
    assert (f"missed: {bar.partition('=')[0]} is" in capsys.readouterr().err) == (code == 4)


@pytest.mark.parametrize(
    ("bar", "problem"),
    [
        ("accuracyy=1", "unknown metric; did you mean 'accuracy'"),
        ("accuracy", "must be METRIC=NUMBER"),
        ("accuracy=high", "must be METRIC=NUMBER"),
    ],
)
def test_a_bar_that_cannot_be_read_is_refused(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture, bar: str, problem: str
) -> None:
    words = ["evaluate", str(write_tiny_bundle(classes=CLASSES)), "--data", str(pictures)]

    assert main([*words, "--fail-under", bar]) == 2
    assert problem in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_is_named_and_left_out(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    (pictures / "test" / "dog" / "0.png").write_bytes(b"broken")

    code = main(
        ["evaluate", str(write_tiny_bundle(classes=CLASSES)), "--data", str(pictures), "--json"]
    )

    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (code, document["n_images"], document["n_unreadable"]) == (5, 8, 1)
    assert captured.err == "test/dog/0.png: not a picture in a known format\n"


def test_nothing_that_can_be_read_is_nothing_to_do(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    for path in (pictures / "test").rglob("*.png"):
        path.write_bytes(b"broken")

    words = ["evaluate", str(write_tiny_bundle(classes=CLASSES)), "--data", str(pictures)]

    assert main(words) == 3
    assert "no picture could be read" in capsys.readouterr().err


def test_people_get_figures_classes_and_the_matrix(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    words = ["evaluate", str(write_tiny_bundle(classes=CLASSES)), "--data", str(pictures)]

    main(words)

    captured = capsys.readouterr()
    assert captured.err == ""
    for text in ("split test: 9 images", "accuracy  ", "ROC-AUC", "(macro mean)", "confusion mat"):
        assert text in captured.out
    assert captured.out.splitlines()[-4].split() == ["true", "class", *CLASSES]


def test_many_classes_get_their_most_frequent_confusions(
    tmp_path: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    classes = tuple(f"c{number:02d}" for number in range(16))
    for place, name in enumerate(classes):
        draw(tmp_path / "many" / name, 1, seed=place)

    main(["evaluate", str(write_tiny_bundle(classes=classes)), "--data", str(tmp_path / "many")])

    assert "most frequent confusions" in capsys.readouterr().out


def test_images_that_the_study_may_have_trained_on_bring_a_warning(
    pictures: Path,
    write_tiny_bundle: WriteBundle,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(pictures.parent)
    pictures.rename("drawn")  # the name of the data in the tiny bundle
    words = ["evaluate", str(write_tiny_bundle(classes=CLASSES)), "--data", "drawn"]

    main(words)
    assert capsys.readouterr().err == ""
    main([*words, "--split", "train"])
    assert "the figures flatter" in capsys.readouterr().err


@pytest.mark.slow
def test_help_needs_no_torch_and_no_numpy() -> None:
    code = (
        "import sys\n"
        "from search.cli import main\n"
        "assert main(['evaluate', '--help']) == 0\n"
        "assert not {'torch', 'numpy', 'optuna', 'sklearn'} & set(sys.modules)\n"
    )

    outcome = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )

    assert outcome.returncode == 0, outcome.stderr
    assert "--fail-under" in outcome.stdout


def test_pictures_of_one_class_alone_can_be_evaluated(
    pictures: Path, write_tiny_bundle: WriteBundle, capsys: Capture
) -> None:
    draw(pictures.parent / "owls" / "owl", 3, seed=1)
    bundle = write_tiny_bundle(classes=CLASSES)

    code, document = evaluate(capsys, bundle, "--data", pictures.parent / "owls")

    assert code == 0
    assert document["n_images"] == 3
    assert document["roc_auc"] is None

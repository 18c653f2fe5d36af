from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from ensembles.errors import EnsembleError
from ensembles.pool import Pool
from ensembles.pool_files import Kind, tell_kind

LABELS = np.array([0, 2, 1, 1])
LOGITS = np.random.default_rng(0).normal(size=(3, 4, 3))
PROBABILITIES = softmax(LOGITS, axis=2)
VALUES: dict[Kind, np.ndarray] = {
    "logits": LOGITS,
    "probabilities": PROBABILITIES,
    "log_probabilities": np.log(PROBABILITIES),
}
NAMES = ["2", "10", "mean of 3"]
WriteFolder = Callable[..., Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Return a writer of folders: arrays by name, and classes if there are any."""

    def write(arrays: dict[str, np.ndarray], classes: str | None = None) -> Path:
        folder = tmp_path / "predictions"
        folder.mkdir()
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=True)
        if classes is not None:
            (folder / "classes.txt").write_text(classes, encoding="utf-8")
        return folder

    return write


@pytest.mark.parametrize("kind", VALUES)
def test_a_folder_holds_what_its_arrays_say(write_folder: WriteFolder, kind: Kind) -> None:
    models = dict(zip(NAMES, VALUES[kind], strict=True))

    pool = Pool.load(write_folder({**models, "labels": LABELS}, classes="cat\ndog\nowl\n"))

    assert pool.names == tuple(NAMES)
    assert pool.class_names == ("cat", "dog", "owl")
    np.testing.assert_array_equal(pool.labels, LABELS)
    np.testing.assert_allclose(np.exp(pool.log_probabilities), PROBABILITIES, rtol=1e-5)


def test_a_folder_without_class_names_numbers_them(write_folder: WriteFolder) -> None:
    pool = Pool.load(str(write_folder({"a": LOGITS[0], "labels": LABELS})))

    assert pool.class_names == ("0", "1", "2")


@pytest.mark.parametrize("kind", VALUES)
def test_an_archive_of_one_array_holds_names_costs_and_classes(tmp_path: Path, kind: Kind) -> None:
    arrays: dict[str, Any] = {kind: VALUES[kind], "labels": LABELS, "costs": [1.0, 2.0, 3.0]}
    np.savez(
        tmp_path / "all.npz", **arrays, names=["10", "2", "x"], class_names=["cat", "dog", "owl"]
    )

    pool = Pool.load(tmp_path / "all.npz")

    assert pool.names == ("10", "2", "x")
    assert pool.class_names == ("cat", "dog", "owl")
    assert pool.costs.tolist() == [1, 2, 3]
    np.testing.assert_allclose(np.exp(pool.log_probabilities), PROBABILITIES, rtol=1e-5)


def test_an_archive_of_one_array_per_model_is_in_natural_order(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"trial 10": LOGITS[0], "trial 9": LOGITS[1], "labels": LABELS}
    np.savez_compressed(tmp_path / "each.npz", **arrays)

    pool = Pool.load(tmp_path / "each.npz")

    assert pool.names == ("trial 9", "trial 10")
    np.testing.assert_allclose(np.exp(pool.log_probabilities[1]), PROBABILITIES[0], rtol=1e-5)


def test_half_precision_probabilities_are_told_from_logits() -> None:
    halves = np.random.default_rng(1).dirichlet(np.ones(1000), size=20).astype(np.float16)
    # log(0) is what half precision makes of a small probability
    assert tell_kind({"a": halves}) == "probabilities"
    assert tell_kind({"a": np.log(np.maximum(halves, np.float16(1e-7)))}) == "log_probabilities"


def test_logits_of_one_sign_are_logits() -> None:
    assert tell_kind({"a": np.array([[0.9, 0.9], [0.5, 0.5]])}) == "logits"
    assert tell_kind({"a": np.array([[-3.0, -4.0]])}) == "logits"


def test_the_kind_may_be_said(write_folder: WriteFolder) -> None:
    folder = write_folder({"a": PROBABILITIES[0], "labels": LABELS})

    pool = Pool.load(folder, kind="logits")

    np.testing.assert_allclose(
        np.exp(pool.log_probabilities[0]), softmax(PROBABILITIES[0], axis=1), rtol=1e-5
    )


def test_models_of_different_kinds_are_refused(write_folder: WriteFolder) -> None:
    folder = write_folder({"a": PROBABILITIES[0], "b": LOGITS[1], "labels": LABELS})

    with pytest.raises(
        EnsembleError, match=r"model a look like prob.*, those of model b like log"
    ):
        Pool.load(folder)


def test_a_model_with_nan_is_named(write_folder: WriteFolder) -> None:
    broken = PROBABILITIES[1].copy()
    broken[2, 0] = np.nan

    with pytest.raises(EnsembleError, match="model b: probabilities of 1 of 4 images are not fin"):
        Pool.load(write_folder({"a": PROBABILITIES[0], "b": broken, "labels": LABELS}))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "needs labels.npy and one .npy for each model, got nothing"),
        ({"a": LOGITS[0]}, "needs labels.npy .* got a.npy"),
        ({"labels": LABELS}, "one .npy for each model, got labels.npy"),
        ({"a": LOGITS[0], "labels": LABELS[:3]}, "labels must be 4 whole numbers"),
        ({"a": LOGITS[0], "b": LOGITS[1, :3], "labels": LABELS}, "same images and classes"),
        ({"a": np.array(["x"]), "labels": LABELS}, "must be arrays of numbers"),
        (
            {"a": np.zeros((0, 3)), "labels": LABELS},
            r"must be arrays of numbers, got shape \(0, 3",
        ),
        ({"a": np.array([{}]), "labels": LABELS}, "a.npy cannot be read without unpickling"),
    ],
)
def test_a_folder_that_holds_no_predictions_is_refused(
    write_folder: WriteFolder, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(EnsembleError, match=f"predictions: .*{message}"):
        Pool.load(write_folder(arrays))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": LOGITS}, r"needs labels .* got logits \(3, 4, 3\)"),
        ({"labels": LABELS}, "needs labels and either one"),
        ({"labels": LABELS, "logits": LOGITS, "a": LOGITS[0]}, "needs labels and either one"),
        ({"labels": LABELS, "logits": LOGITS[0]}, r"shape \(models, images, classes\), got"),
        ({"labels": LABELS, "logits": LOGITS, "names": ["a", "b"]}, "3 models need as many diff"),
        ({"labels": LABELS, "a": LOGITS[0], "names": ["a"]}, "names belong to one array of all"),
        ({"labels": LABELS, "logits": LOGITS, "class_names": ["a"]}, "3 different class names"),
        ({"labels": LABELS, "a": np.array([{}])}, "x.npz cannot be read without unpickling"),
    ],
)
def test_an_archive_that_holds_no_predictions_is_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)

    with pytest.raises(EnsembleError, match=message):
        Pool.load(tmp_path / "x.npz")


def test_a_file_that_says_another_kind_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", logits=LOGITS, labels=LABELS)

    with pytest.raises(EnsembleError, match="holds logits, probabilities were asked for"):
        Pool.load(tmp_path / "x.npz", kind="probabilities")


@pytest.mark.parametrize(
    ("name", "content"), [("x.npz", b"PK"), ("x.npz", b""), ("x.npz", b"a,b")]
)
def test_a_broken_archive_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(EnsembleError, match=r"x\.npz cannot be read without unpickling"):
        Pool.load(tmp_path / name)


def test_a_broken_array_is_refused(write_folder: WriteFolder) -> None:
    folder = write_folder({"labels": LABELS})
    (folder / "a.npy").write_bytes(b"no array")

    with pytest.raises(EnsembleError, match=r"a\.npy cannot be read"):
        Pool.load(folder)


def test_a_path_to_nothing_or_to_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").touch()

    with pytest.raises(EnsembleError, match=r"nothing\.npz: there is no such file"):
        Pool.load(tmp_path / "nothing.npz")
    with pytest.raises(
        EnsembleError, match=r"in a folder or as \.npz, \.csv, \.parquet, got \.pkl"
    ):
        Pool.load(tmp_path / "model.pkl")


def test_logarithms_of_hard_zeros_are_told_from_logits(write_folder: WriteFolder) -> None:
    hard = np.log(np.maximum(np.eye(3)[LABELS], 1e-300))
    hard[hard < -100] = -np.inf

    pool = Pool.load(write_folder({"a": hard, "labels": LABELS}))

    assert (pool.log_probabilities[0].argmax(axis=1) == LABELS).all()
    assert pool.log_probabilities.min() == pytest.approx(-30)


def test_class_names_in_another_encoding_are_refused(write_folder: WriteFolder) -> None:
    folder = write_folder({"a": PROBABILITIES[0], "labels": LABELS})
    (folder / "classes.txt").write_bytes("K\xe4fer\nB\xe4r\nMaus\n".encode("latin-1"))

    with pytest.raises(EnsembleError, match=r"predictions: classes\.txt must be text in UTF-8"):
        Pool.load(folder)


def test_costs_that_are_words_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, probabilities=PROBABILITIES, labels=LABELS, costs=np.array(["a", "b", "c"]))

    with pytest.raises(EnsembleError, match=r"some\.npz: costs must be 3 numbers above 0"):
        Pool.load(file)


@pytest.mark.usefixtures("without_type_checks")
def test_a_kind_that_there_is_not_is_refused(write_folder: WriteFolder) -> None:
    folder = write_folder({"a": PROBABILITIES[0], "labels": LABELS})

    with pytest.raises(EnsembleError, match=r"kind must be one of .* got 'nonsense'"):
        Pool.load(folder, kind="nonsense")  # type: ignore[arg-type]

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import Finished

from ensembles.bundle import load_bundle
from ensembles.errors import EnsembleError
from search.cli import main
from search.data.roles import read_roles
from search.data.store import open_store
from search.ensembling import read_ensemble
from search.errors import SearchError
from search.exporting import export_study
from search.study import Study, load_study

# Loads a bundle where Optuna cannot be imported, and writes what it predicts.
PREDICT = """
import sys

sys.modules["optuna"] = None
import numpy as np
from ensembles.bundle import load_bundle

bundle = load_bundle(sys.argv[1])
np.save(sys.argv[3], bundle.predict(np.load(sys.argv[2])))
assert not any(name.startswith(("optuna.", "search")) for name in sys.modules)
"""


def images_of_the_test_role(study: Study) -> np.ndarray:
    return open_store(study.record.store).unpadded(read_roles(study.paths.roles).test)


def predict_elsewhere(bundle: Path, images: np.ndarray, folder: Path) -> np.ndarray:
    """Return what a moved bundle predicts in a fresh process without Optuna."""
    moved = folder / "moved" / "far away"
    moved.parent.mkdir()
    bundle.rename(moved)
    np.save(folder / "images.npy", images)
    ran = subprocess.run(
        [sys.executable, "-c", PREDICT, moved, folder / "images.npy", folder / "predicted.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    predicted: np.ndarray = np.load(folder / "predicted.npy")
    return predicted


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--method", "single"], ["--force-ensemble"]])
def test_a_moved_bundle_gives_the_stored_probabilities(
    flags: list[str], finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = finished.study
    result = read_ensemble(study.paths)
    method = "single" if "single" in flags else result.report.choice
    selection = result.selections[method]
    stored = np.stack(
        [np.load(study.paths.trial(int(name)).predictions("test")) for name in selection.names]
    )

    code = main(
        [
            "export",
            "whole",
            "--out",
            str(tmp_path / "model"),
            *flags,
            "--json",
            "--studies",
            str(finished.shell.studies),
        ]
    )

    document = json.loads(capsys.readouterr().out)
    predicted = predict_elsewhere(tmp_path / "model", images_of_the_test_role(study), tmp_path)
    assert code == 0
    assert document["method"] == method
    assert document["members"] == list(selection.names)
    assert document["trials"] == [int(name) for name in selection.names]
    np.testing.assert_allclose(
        predicted, np.exp(selection.combination.combine(stored)), rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_what_is_exported_follows_the_verdict(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = read_ensemble(finished.study.paths)

    code = main(
        ["export", "--out", str(tmp_path / "model"), "--studies", str(finished.shell.studies)]
    )

    told = capsys.readouterr()
    assert code == 0
    assert told.out.startswith(f"{tmp_path / 'model'}: {result.worth_exporting}, trial")
    not_established = result.worth_exporting == "single" and result.report.choice != "single"
    assert ("--force-ensemble exports the ensemble" in told.err) is not_established


@pytest.mark.slow
def test_a_folder_that_is_not_empty_is_left_alone(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work", encoding="utf-8")
    words = ["export", "--out", str(tmp_path), "--studies", str(finished.shell.studies)]

    assert main(words) == 2
    told = capsys.readouterr()
    assert main([*words, "--overwrite"]) == 2

    assert told.err.startswith(f"error: {tmp_path}")
    assert told.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_an_older_bundle_is_replaced_when_asked(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--out", str(tmp_path / "model"), "--studies", str(finished.shell.studies)]

    codes = [main(words), main(words), main([*words, "--overwrite"])]

    assert codes == [0, 2, 0]
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_lost_weights_and_methods_that_were_not_built_are_named(
    finished: Finished, tmp_path: Path
) -> None:
    shutil.copytree(finished.study.paths.folder, tmp_path / "whole")
    study = load_study("whole", studies=tmp_path)
    for weights in study.paths.folder.glob("trials/*/weights.safetensors"):
        weights.unlink()

    with pytest.raises(SearchError, match=r"weights\.safetensors: the weights of this trial"):
        export_study(study, tmp_path / "model")
    with pytest.raises(EnsembleError, match="method 'stack' was not built for this study; there"):
        export_study(study, tmp_path / "model", method="stack")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_bundle_promises_what_it_was_told_to(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = str(finished.shell.studies)
    words = ["export", "whole", "--force-ensemble", "--studies", studies, "--out"]

    assert main([*words, str(tmp_path / "plain")]) == 0
    assert (
        main([*words, str(tmp_path / "told"), "--alpha", "0.2", "--target-accuracy", "0.05"]) == 0
    )
    assert main([*words, str(tmp_path / "no"), "--alpha", "0.0001"]) == 2

    plain = load_bundle(tmp_path / "plain").manifest
    told = load_bundle(tmp_path / "told").manifest
    assert plain.conformal is not None
    assert plain.conformal.alpha == 0.1
    assert plain.rejection is None
    assert told.conformal is not None
    assert told.conformal.alpha == 0.2
    assert told.conformal.threshold >= plain.conformal.threshold
    assert told.rejection is not None
    assert told.rejection.target_accuracy == 0.05
    assert told.cascade is None  # 180 images are too few for one
    assert "alpha 0.0001 needs at least 9999 images" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()

import json
import logging
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search.exhibits import exhibit_trial
from search.paths import StudyPaths
from search.storage import create_study, open_study

LABELS = np.array([0, 1, 1])


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    paths = StudyPaths(tmp_path / "tiny")
    paths.folder.mkdir()
    create_study(paths, StudyDirection.MINIMIZE, metric="log_loss", attributes={}, first_trials=())
    return paths


@pytest.fixture
def trial(paths: StudyPaths) -> optuna.Trial:
    trial = open_study(paths).ask()
    files = paths.trial(trial.number)
    files.folder.mkdir(parents=True)
    predicted = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], dtype=np.float32))
    np.save(files.predictions("stop"), predicted)
    row = {"round": 1, "train_loss": 0.7, "log_loss": 0.5, "accuracy": 2 / 3}
    files.history.write_text(json.dumps([row]), encoding="utf-8")
    return trial


def exhibit(trial: optuna.Trial, paths: StudyPaths) -> None:
    exhibit_trial(trial, paths, stop_labels=LABELS, class_names=("cat", "dog"), best_round=1)


def test_a_trial_shows_its_confusions_and_its_curves(
    trial: optuna.Trial, paths: StudyPaths
) -> None:
    exhibit(trial, paths)

    shown = {meta.filename: meta for meta in get_all_artifact_meta(trial)}
    assert set(shown) == {"confusion-matrix.svg", "learning-curves.svg"}
    assert {meta.mimetype for meta in shown.values()} == {"image/svg+xml"}
    store = FileSystemArtifactStore(paths.artifacts)
    with store.open_reader(shown["confusion-matrix.svg"].artifact_id) as file:
        assert "2 of 3 right" in file.read().decode()


def test_a_picture_that_cannot_be_drawn_costs_no_trial(
    trial: optuna.Trial, paths: StudyPaths, caplog: pytest.LogCaptureFixture
) -> None:
    paths.trial(trial.number).history.unlink()

    with caplog.at_level(logging.ERROR):
        exhibit(trial, paths)

    assert "trial 0: no pictures for the dashboard" in caplog.text
    assert "FileNotFoundError" in caplog.text


def test_a_trial_that_somebody_else_has_finished_says_so(
    trial: optuna.Trial, paths: StudyPaths
) -> None:
    open_study(paths).tell(trial.number, state=TrialState.FAIL)

    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        exhibit(trial, paths)

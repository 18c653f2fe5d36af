"""What the dashboard shows of one trial: its confusion matrix and its learning curves."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import optuna
from jaxtyping import Int
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from ensembles.metrics import count_confusions
from search.disk import can_write
from search.errors import DiskFullError
from search.paths import StudyPaths
from search.pictures import confusion_svg, curves_svg

logger = logging.getLogger(__name__)

_SPARE_BYTES = 1 << 16


def exhibit_trial(
    trial: optuna.Trial,
    paths: StudyPaths,
    *,
    stop_labels: Int[np.ndarray, " images"],
    class_names: tuple[str, ...],
    best_round: int,
) -> None:
    """Hang two pictures of a trial up in the dashboard, before the trial is told.

    Optuna takes no artifact of a finished trial. A picture is worth less than the training behind
    it: what goes wrong here stands in the log with its traceback, and the trial goes on.

    Args:
        trial: A running trial whose predictions and history are on the disk.
        paths: Files of its study.
        stop_labels: True classes of the stop role.
        class_names: Names of the classes.
        best_round: Number of the round that was kept.

    Raises:
        UpdateFinishedTrialError: Somebody else has finished the trial.
        DiskFullError: There is no room for them.
    """
    try:
        pictures = _draw(paths, trial.number, stop_labels, class_names, best_round)
        paths.artifacts.mkdir(exist_ok=True)
        _check_room(paths.artifacts, sum(map(len, pictures.values())))
        store = FileSystemArtifactStore(paths.artifacts)
        with TemporaryDirectory() as folder:
            for name, picture in pictures.items():
                file = Path(folder) / name
                file.write_text(picture, encoding="utf-8")
                # Windows takes the kinds of files from its registry; so it is told here.
                upload_artifact(
                    artifact_store=store,
                    file_path=str(file),
                    study_or_trial=trial,
                    mimetype="image/svg+xml",
                )
    except (optuna.exceptions.UpdateFinishedTrialError, DiskFullError):
        raise
    except Exception:
        logger.exception("trial %d: no pictures for the dashboard", trial.number)


def _check_room(folder: Path, n_bytes: int) -> None:
    """Refuse pictures for which there is no room: Optuna would note them, and then not write them.

    Raises:
        DiskFullError: There is none.
    """
    if not can_write(folder, n_bytes + _SPARE_BYTES):
        raise DiskFullError(f"{folder}: no room left for the pictures of a trial.")


def _draw(
    paths: StudyPaths,
    trial_number: int,
    stop_labels: Int[np.ndarray, " images"],
    class_names: tuple[str, ...],
    best_round: int,
) -> dict[str, str]:
    """Return the pictures by the names of their files."""
    files = paths.trial(trial_number)
    predicted = np.load(files.predictions("stop"), mmap_mode="r", allow_pickle=False)
    history = json.loads(files.history.read_text(encoding="utf-8"))
    return {
        "confusion-matrix.svg": confusion_svg(
            count_confusions(predicted, stop_labels), class_names
        ),
        "learning-curves.svg": curves_svg(history, best_round),
    }

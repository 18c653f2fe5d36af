"""The curve of a study's ensemble while it searches: its points, in words and on the disk."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ensembles.methods import Method
from ensembles.overtuning import Overtuning
from search.paths import StudyPaths, write_whole

logger = logging.getLogger(__name__)

MAX_POINTS = 100
"""More would show nothing more on a screen; the file and the figure stay below 80 kB."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How good predictions are on the ens role."""

    log_loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The ensemble of what was finished at one moment of a search."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    n_finished: int
    """Trials that were complete or pruned."""
    seconds: float
    """Spent searching so far, in all runs of the study."""
    n_images: int
    """Images of the ens role that it was fitted and scored on, each only with fits that had not
    seen it."""
    best_trial: int
    """The trial of lowest log-loss on the stop role."""
    best: Score
    """Of the best trial, with a temperature fitted in the same way as the ensemble."""
    method: Method
    ensemble: Score
    n_members: int
    """Models that one prediction needs."""
    members: tuple[int, ...]
    """Trials that any of the fits chose, the heaviest first."""
    overtuning: Overtuning
    """Of the best trial."""

    @property
    def gain(self) -> float:
        """Accuracy of the ensemble less that of the best trial, in points."""
        return 100 * (self.ensemble.accuracy - self.best.accuracy)

    def sentence(self) -> str:
        """Say in one line how good the ensemble is so far."""
        members = "1 member" if self.n_members == 1 else f"{self.n_members} members"
        overtuning = self.overtuning
        plain = "" if overtuning.verdict == "flattered" else f" ({overtuning.verdict})"
        return (
            f"ensemble so far: log-loss {self.ensemble.log_loss:.4f}, "
            f"accuracy {100 * self.ensemble.accuracy:.2f} % on the ens role "
            f"({members}, {self.gain:+.2f} points on trial {self.best_trial}); "
            f"stop flatters that trial by {overtuning.log_loss_optimism:+.3f} nats, "
            f"{100 * overtuning.accuracy_optimism:+.1f} points{plain}"
        )


def add_point(points: Sequence[CurvePoint], point: CurvePoint) -> tuple[CurvePoint, ...]:
    """Return a curve with one more point; of too many, one of those that lie closest goes.

    The first and the newest stay, and the rest stay spread over the search.
    """
    longer = [*(each for each in points if each.n_finished < point.n_finished), point]
    while len(longer) > MAX_POINTS:
        gaps = [
            after.n_finished - before.n_finished
            for before, after in zip(longer, longer[2:], strict=False)
        ]
        del longer[1 + gaps.index(min(gaps))]
    return tuple(longer)


def write_curve(paths: StudyPaths, points: Sequence[CurvePoint]) -> None:
    """Keep a curve in the folder of its study."""
    document = {"schema": 1, "role": "ens", "points": _POINTS.dump_python(tuple(points))}
    write_whole(paths.ensemble_curve, json.dumps(document).encode())


def read_curve(paths: StudyPaths) -> tuple[CurvePoint, ...]:
    """Read the curve of a study; empty when it has none.

    A file that cannot be read is in the log and counts as none: the curve is told, not used.
    """
    if not paths.ensemble_curve.is_file():
        return ()
    try:
        document: dict[str, Any] = json.loads(paths.ensemble_curve.read_text(encoding="utf-8"))
        return _POINTS.validate_json(json.dumps(document["points"]), strict=True)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        logger.warning("%s: cannot be read: %s", paths.ensemble_curve, error)
        return ()


_POINTS = TypeAdapter(tuple[CurvePoint, ...])

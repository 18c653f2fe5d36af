"""Everything to go on with an interrupted trial from its last round."""

import io
import logging
import pickle
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from search.paths import TrialPaths, write_whole

logger = logging.getLogger(__name__)

# A checkpoint costs some 10 ms, much more on a slow disk: too much after each round of a trial
# that lasts 2 s. A round that took fifty times as long as its saving is always saved.
MIN_SECONDS_BETWEEN = 1.0
MAX_SHARE_OF_TIME = 0.02


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trial between two rounds; only types that `torch.load(weights_only=True)` reads."""

    n_steps: int
    training: dict[str, Any]
    history: list[dict[str, float]]
    best_round: int
    best_weights: dict[str, Tensor]
    seconds: float
    """That the trial has taken so far, in all its processes."""
    snapshots: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Weights of late rounds, by name."""
    n_parts: int = 1
    """Parts into which its batches are cut, so that they fit into the memory."""
    n_predicted: int | None = None
    """Images that are predicted at a time."""


def save_checkpoint(paths: TrialPaths, checkpoint: Checkpoint) -> None:
    """Replace the trial's checkpoint; one that exists is whole."""
    content = io.BytesIO()
    torch.save(vars(checkpoint), content)
    write_whole(paths.checkpoint, content.getbuffer())


@dataclass
class Saver:
    """Saves rounds of one trial, as often as it costs next to nothing."""

    paths: TrialPaths
    _saved_at: float = field(default_factory=time.monotonic)
    _cost: float = 0.0

    def is_due(self) -> bool:
        """Tell whether the last one was saved long enough ago."""
        interval = max(MIN_SECONDS_BETWEEN, self._cost / MAX_SHARE_OF_TIME)
        return time.monotonic() - self._saved_at >= interval

    def save(self, checkpoint: Checkpoint) -> None:
        """Save a round, and remember what that cost."""
        began = time.monotonic()
        save_checkpoint(self.paths, checkpoint)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began


def load_checkpoint(paths: TrialPaths, device: torch.device) -> Checkpoint | None:
    """Read the trial's checkpoint, or return None where there is none that can be read.

    A checkpoint that cannot be read costs the rounds that it held; the trial begins anew.
    """
    if not paths.checkpoint.is_file():
        return None
    try:
        return Checkpoint(**torch.load(paths.checkpoint, map_location=device, weights_only=True))
    except (OSError, RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        logger.warning("%s: cannot be read, the trial begins anew: %s", paths.checkpoint, error)
        return None

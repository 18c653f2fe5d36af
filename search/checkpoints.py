"""Everything to go on with an interrupted trial from its last round."""

import io
import logging
import pickle
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from search.paths import TrialPaths, write_whole

logger = logging.getLogger(__name__)


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


def save_checkpoint(paths: TrialPaths, checkpoint: Checkpoint) -> None:
    """Replace the trial's checkpoint; one that exists is whole."""
    content = io.BytesIO()
    torch.save(vars(checkpoint), content)
    write_whole(paths.checkpoint, content.getbuffer())


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

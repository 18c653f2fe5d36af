"""How the weights of one network are trained."""

from dataclasses import dataclass
from typing import Literal

from spaces.errors import SpaceError
from spaces.strict import STRICT

OptimizerName = Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "muon"]
ScheduleName = Literal["linear", "cosine", "step", "constant", "wsd"]
Averaging = Literal["none", "ema", "lookahead"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer, schedule and loss of one training."""

    __pydantic_config__ = STRICT

    name: OptimizerName
    learning_rate: float
    """Peak learning rate for the mean loss of a batch; with Muon, that of the convolutions."""
    momentum: float
    """Momentum of SGD and RMSprop, first beta of Adam and AdamW; Adagrad ignores it, and Muon
    uses it for all but convolutions."""
    nesterov: bool
    """Nesterov's momentum; SGD may have it, Muon always has."""
    weight_decay: float
    """Coefficient as `torch.optim` takes it; norms and biases are left out, with Muon convolutions
    too."""
    norm_bias_factor: float
    """The biases of norm layers learn this many times faster (64 in the fastest recipe)."""
    schedule: ScheduleName
    warmup: float
    """Share of the steps in which the learning rate rises, in [0, 1)."""
    batch_size: int
    label_smoothing: float
    """Share of the target spread over all classes, in [0, 1)."""
    averaging: Averaging
    """Average of the weights that is evaluated and kept."""

    def __post_init__(self) -> None:
        """Refuse values that no optimizer accepts."""
        for name in ("learning_rate", "norm_bias_factor", "batch_size"):
            if getattr(self, name) <= 0:
                raise SpaceError(f"optimizer.{name} must be above 0, got {getattr(self, name)}.")
        for name in ("momentum", "warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise SpaceError(f"optimizer.{name} must be in [0, 1), got {getattr(self, name)}.")
        if self.weight_decay < 0:
            raise SpaceError(
                f"optimizer.weight_decay must be at least 0, got {self.weight_decay}."
            )

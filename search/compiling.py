"""Decides whether a network is compiled for the rest of its training.

On a CPU never: code by inductor is a quarter to 40 % slower than eager channels_last (measured, in
bf16), after 10 to 60 s of compiling. On a GPU the fastest published recipe gains 1.24 times by it
(Jordan 2024, an A100, compiling not counted; not measured here). A study trains another
architecture in each trial and pays for compiling each time; so a network is compiled in the course
of its training, once it is known how long the rest takes, and only if that is much.
"""

import shutil

import torch
from torch.utils._triton import has_triton

_SECONDS_TO_COMPILE = 60.0
_GAIN = 1 - 1 / 1.24
_MARGIN = 2.0
"""Times the cost that must be gained, since neither figure is that of this machine."""


def compiling_pays(device: torch.device, *, seconds_left: float) -> bool:
    """Tell whether compiling takes less time than it saves: on a GPU, with ten minutes to go.

    Args:
        device: What trains.
        seconds_left: What the rest of the training takes uncompiled.
    """
    return device.type == "cuda" and _GAIN * seconds_left > _MARGIN * _SECONDS_TO_COMPILE


def can_compile() -> bool:
    """Tell whether what inductor needs for a GPU is there: Triton and a C compiler."""
    return has_triton() and any(shutil.which(name) for name in ("cc", "gcc", "clang"))

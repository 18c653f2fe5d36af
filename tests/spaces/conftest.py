"""Small architectures and tasks that several tests of this package share."""

from typing import Protocol

import pytest

from spaces.architecture import Architecture, Family, Initialization, Norm, Pooling, Stage, Stem
from spaces.task import Task


class MakeArchitecture(Protocol):
    """Builds a small architecture; what a test does not name is plain."""

    def __call__(
        self,
        *,
        family: Family = "plain",
        stem: Stem = "convolution",
        pooling: Pooling = "max",
        norm: Norm = "batch",
        initialization: Initialization = "he",
        n_convolutions: int = 2,
        n_stages: int = 2,
    ) -> Architecture: ...


def _make_architecture(
    *,
    family: Family = "plain",
    stem: Stem = "convolution",
    pooling: Pooling = "max",
    norm: Norm = "batch",
    initialization: Initialization = "he",
    n_convolutions: int = 2,
    n_stages: int = 2,
) -> Architecture:
    stage = Stage(width=8, kernel_size=3, n_convolutions=n_convolutions)
    return Architecture(
        family=family,
        stem=stem,
        stem_width=8,
        stages=(stage,) * n_stages,
        pooling=pooling,
        norm=norm,
        activation="relu",
        head="average",
        dropout=0.0,
        initialization=initialization,
        logit_scale=1.0,
    )


@pytest.fixture
def make_architecture() -> MakeArchitecture:
    return _make_architecture


@pytest.fixture
def digits() -> Task:
    """8x8 grey images of ten classes."""
    return Task(image_size=8, channels=1, n_classes=10)


@pytest.fixture
def cifar() -> Task:
    """32x32 RGB images of ten classes."""
    return Task(image_size=32, channels=3, n_classes=10)

"""Pools that tests of several modules need."""

from collections.abc import Callable, Sequence

import jaxtyping
import numpy as np
import pytest

from ensembles.pool import Pool


@pytest.fixture
def without_type_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call as users do: types are checked at run time in tests alone."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def pool_of() -> Callable[[Sequence[Sequence[float]]], Pool]:
    """Return a maker of pools: per model, each image's probability of the true class 0 of 2."""

    def make(true_class: Sequence[Sequence[float]]) -> Pool:
        right = np.asarray(true_class, dtype=np.float64)
        return Pool.from_arrays(
            probabilities=np.stack([right, 1 - right], axis=2),
            labels=np.zeros(right.shape[1], dtype=np.int64),
        )

    return make


@pytest.fixture
def random_pool() -> Callable[..., Pool]:
    """Return a maker of pools of models whose mistakes are partly shared."""

    def make(
        n_models: int = 8,
        n_images: int = 400,
        n_classes: int = 4,
        *,
        seed: int = 0,
        skill: float = 2.0,
    ) -> Pool:
        generator = np.random.default_rng(seed)
        labels = generator.integers(n_classes, size=n_images)
        shared = generator.normal(size=(n_images, n_classes))
        shared[np.arange(n_images), labels] += skill
        own = generator.normal(size=(n_models, n_images, n_classes))
        return Pool.from_arrays(logits=(shared + own).astype(np.float32), labels=labels)

    return make

from dataclasses import replace

import pytest
from optuna.trial import FixedTrial

from spaces.errors import SpaceError
from spaces.known import known_parameters
from spaces.optimizer import Optimizer
from spaces.space import Space
from spaces.suggestions.optimizer import (
    base_learning_rate,
    base_weight_decay,
    clip_batch,
    suggest_optimizer,
)
from spaces.task import Task


@pytest.fixture
def parameters(cifar: Task) -> dict[str, bool | int | float | str]:
    return known_parameters(Space(), cifar)[0]


@pytest.fixture
def optimizer(parameters: dict[str, bool | int | float | str]) -> Optimizer:
    return suggest_optimizer(FixedTrial(parameters), Space())


def test_the_rate_of_sgd_grows_with_the_batch_and_shrinks_with_momentum() -> None:
    # At batch 512 and momentum 0.85, 11.5 / 2 is shared out over 1 + 1 / 0.15 = 7.67 steps.
    assert base_learning_rate("sgd", batch_size=512, momentum=0.85) == pytest.approx(0.75)
    assert base_learning_rate("sgd", batch_size=128, momentum=0.85) == pytest.approx(0.1875)
    assert base_learning_rate("sgd", batch_size=512, momentum=0.95) == pytest.approx(5.75 / 21)


def test_the_rates_of_adaptive_optimizers_grow_with_the_root_of_the_batch() -> None:
    for name in ("adam", "adamw", "adagrad", "rmsprop"):
        rates = [base_learning_rate(name, batch_size=n, momentum=0.9) for n in (128, 512)]
        assert rates[1] == pytest.approx(2 * rates[0])
    assert base_learning_rate("adamw", batch_size=512, momentum=0.9) == 0.004
    assert base_learning_rate("rmsprop", batch_size=512, momentum=0.9) == pytest.approx(0.0004)


def test_factors_multiply_the_base_of_the_chosen_optimizer(
    parameters: dict[str, bool | int | float | str],
) -> None:
    chosen = {
        "optimizer.name": "adamw",
        "optimizer.batch_size": 128,
        "optimizer.learning_rate_factor": 0.5,
        "optimizer.weight_decay_factor": 0.25,
    }

    optimizer = suggest_optimizer(FixedTrial({**parameters, **chosen}), Space())

    assert optimizer.learning_rate == pytest.approx(0.001)
    assert optimizer.weight_decay == pytest.approx(0.25 * base_weight_decay("adamw"))


def test_only_sgd_has_nesterov_and_fast_norm_biases(
    parameters: dict[str, bool | int | float | str], optimizer: Optimizer
) -> None:
    other = suggest_optimizer(FixedTrial({**parameters, "optimizer.name": "adam"}), Space())

    assert (optimizer.nesterov, optimizer.norm_bias_factor) == (True, 64.0)
    assert (other.nesterov, other.norm_bias_factor) == (False, 1.0)


def test_without_momentum_there_is_no_nesterov(
    parameters: dict[str, bool | int | float | str],
) -> None:
    space = Space(momentum=(0.0, 0.0))

    assert not suggest_optimizer(FixedTrial(parameters), space).nesterov


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, r"optimizer\.learning_rate must be above 0, got 0\.0"),
        ({"norm_bias_factor": -1.0}, r"optimizer\.norm_bias_factor must be above 0, got -1\.0"),
        ({"batch_size": 0}, r"optimizer\.batch_size must be above 0, got 0"),
        ({"momentum": 1.0}, r"optimizer\.momentum must be in \[0, 1\), got 1\.0"),
        ({"warmup": -0.1}, r"optimizer\.warmup must be in \[0, 1\), got -0\.1"),
        ({"label_smoothing": 1.0}, r"optimizer\.label_smoothing must be in \[0, 1\), got 1\.0"),
        ({"weight_decay": -1.0}, r"optimizer\.weight_decay must be at least 0, got -1\.0"),
    ],
)
def test_values_that_no_optimizer_accepts_are_refused(
    optimizer: Optimizer, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SpaceError, match=message):
        replace(optimizer, **changes)  # type: ignore[arg-type]


def test_a_batch_larger_than_the_training_set_is_clipped_with_its_rate(
    optimizer: Optimizer,
) -> None:
    sgd = replace(optimizer, name="sgd", batch_size=512, learning_rate=0.8)
    adam = replace(optimizer, name="adam", batch_size=512, learning_rate=0.8)

    assert clip_batch(sgd, 128) == replace(sgd, batch_size=128, learning_rate=0.2)
    assert clip_batch(adam, 128) == replace(adam, batch_size=128, learning_rate=0.4)
    assert clip_batch(sgd, 512) is sgd

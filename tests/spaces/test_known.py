from dataclasses import replace

import optuna
import pytest
from optuna.trial import FixedTrial

from spaces.architecture import Stage
from spaces.known import known_parameters, known_recipes
from spaces.recipe import Recipe
from spaces.space import SPACES, Space, suggest_recipe
from spaces.task import Task


def recipes(space: Space, task: Task) -> list[Recipe]:
    return [
        suggest_recipe(FixedTrial(parameters), space, task)
        for parameters in known_parameters(space, task)
    ]


def widths(recipe: Recipe) -> list[int]:
    return [stage.width for stage in recipe.architecture.stages]


def test_the_recipes_are_those_of_the_parameters(cifar: Task) -> None:
    for space in SPACES.values():
        assert known_recipes(space, cifar) == recipes(space, cifar)


def test_the_first_is_for_few_images_and_the_second_its_residual_twin(cifar: Task) -> None:
    first, second = recipes(Space(), cifar)[:2]

    assert first.architecture.stages == (
        Stage(width=16, kernel_size=3, n_convolutions=1),
        Stage(width=64, kernel_size=3, n_convolutions=2),
        Stage(width=128, kernel_size=3, n_convolutions=2),
    )
    assert first.optimizer.batch_size == 256
    assert first.optimizer.learning_rate == pytest.approx(0.544, rel=1e-2)
    assert replace(second.architecture, family="plain") == first.architecture
    assert second.optimizer == first.optimizer


def test_the_third_is_the_fastest_recipe_with_the_mean_loss(cifar: Task) -> None:
    recipe = recipes(Space(), cifar)[2]

    assert recipe.architecture.stages == (
        Stage(width=16, kernel_size=3, n_convolutions=2),
        Stage(width=64, kernel_size=3, n_convolutions=2),
        Stage(width=64, kernel_size=3, n_convolutions=2),
    )
    assert (recipe.architecture.stem, recipe.architecture.initialization) == (
        "whitening",
        "identity",
    )
    assert recipe.architecture.logit_scale == 1 / 9
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.nesterov, optimizer.batch_size) == ("sgd", True, 512)
    # For the summed loss 11.5 / (1024 (1 + 1 / (1 - 0.85))), times 512 for the mean.
    assert optimizer.learning_rate == pytest.approx(0.75)
    # Off each weight at each step: 0.0153 * 512 / 1024 / (1 + 1 / 0.15) = 0.000998.
    assert optimizer.weight_decay * optimizer.learning_rate == pytest.approx(9.978e-4, rel=1e-3)
    assert optimizer.weight_decay == pytest.approx(0.00133, rel=1e-3)
    assert (optimizer.momentum, optimizer.warmup, optimizer.label_smoothing) == (0.85, 0.23, 0.2)
    assert (optimizer.schedule, optimizer.averaging) == ("linear", "lookahead")
    assert optimizer.norm_bias_factor == 64
    assert recipe.augmentation.flip == "alternating"
    assert recipe.augmentation.crop * 32 == 2
    assert recipe.augmentation.mixing == recipe.augmentation.policy == "none"


def test_the_default_space_knows_ten_different_recipes(cifar: Task) -> None:
    known = recipes(Space(), cifar)

    assert [widths(recipe) for recipe in known] == [
        [16, 64, 128],
        [16, 64, 128],
        [16, 64, 64],
        [16, 64, 64],
        [16, 32, 64],
        [32, 64, 128],
        [32, 64, 128],
        [32, 128, 128],
        [32, 64, 128],
        [16, 64, 128],
    ]
    assert {recipe.architecture.family for recipe in known} == {"plain", "residual"}
    assert {recipe.optimizer.name for recipe in known} == {"sgd", "adamw", "muon"}
    assert known[-2].augmentation.mixing == "cutmix"
    assert len(set(known)) == 10


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize(("size", "channels"), [(4, 1), (8, 1), (28, 1), (32, 3), (224, 3)])
def test_known_points_are_legal_in_every_space(name: str, size: int, channels: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, task = SPACES[name], Task(image_size=size, channels=channels, n_classes=10)
    study = optuna.create_study()
    known = known_parameters(space, task)

    for parameters in known:
        study.enqueue_trial(parameters)
        trial = study.ask()
        suggest_recipe(trial, space, task)

        assert trial.params == parameters
        for parameter, distribution in trial.distributions.items():
            assert distribution._contains(distribution.to_internal_repr(parameters[parameter]))
    assert len(known) >= 3


def test_a_narrowed_space_gets_the_nearest_legal_answers(cifar: Task) -> None:
    space = replace(
        Space(),
        flips=("none", "random"),
        kernel_sizes=(5, 7),
        batch_sizes=(64, 100),
        momentum=(0.9, 0.95),
        optimizers=("adam",),
        dropout=(0.25, 0.4),
        width=(20, 40),
    )

    recipe = recipes(space, cifar)[0]

    assert recipe.augmentation.flip == "none"
    assert {stage.kernel_size for stage in recipe.architecture.stages} == {5}
    assert recipe.optimizer.batch_size == 100
    assert recipe.optimizer.momentum == 0.9
    assert recipe.optimizer.name == "adam"
    assert recipe.architecture.dropout == 0.25
    assert recipe.architecture.stages[0].width == 20


def test_recipes_that_a_narrow_space_makes_equal_are_known_once(cifar: Task) -> None:
    space = replace(Space(), width=(16, 16), growth=(1.0, 1.0), families=("plain",))

    known = recipes(space, cifar)

    assert len(set(known)) == len(known) < 8

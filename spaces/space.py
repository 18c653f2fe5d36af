"""The spaces that a study can name, and how a trial becomes a recipe.

`Space` itself is defined in `spaces.ranges`, since the suggestions between it and
`suggest_recipe` need it too; the rest of the code takes both from here.
"""

from collections.abc import Mapping

from spaces.ranges import Space
from spaces.recipe import Recipe
from spaces.suggestions.architecture import suggest_architecture
from spaces.suggestions.augmentation import suggest_augmentation
from spaces.suggestions.optimizer import suggest_optimizer
from spaces.task import Task
from spaces.trial import Trial

__all__ = ["SPACES", "Space", "suggest_recipe"]


def suggest_recipe(trial: Trial, space: Space, task: Task) -> Recipe:
    """Sample all that one trial varies.

    A parameter has the same distribution in every trial of a study: it depends on the space and
    the task alone.

    Args:
        trial: Answers each question; an `optuna.Trial`, or anything like it.
        space: What may vary.
        task: Size and channels of the images; small images have fewer stages.

    Returns:
        The recipe.
    """
    return Recipe(
        architecture=suggest_architecture(trial, space, task),
        optimizer=suggest_optimizer(trial, space),
        augmentation=suggest_augmentation(trial, space, task),
    )


SPACES: Mapping[str, Space] = {
    "default": Space(),
    # A mirrored digit is another sign. Half of one erased, or two patched together, cost 15
    # to 22 points of accuracy after 15 epochs (medians of 150 random points, 8x8 digits).
    "digits": Space(
        flips=("none",),
        width=(8, 32),
        max_width=64,
        max_stage_weights=40_000,
        kernel_sizes=(3, 5),
        n_convolutions=(1, 2),
        batch_sizes=(32, 64, 128),
        shear=(0.0, 10.0),
        erasing=(0.0, 0.25),
        mixings=("none", "mixup"),
    ),
    "small": Space(
        depth=(2, 3),
        width=(8, 24),
        max_width=48,
        max_stage_weights=30_000,
        kernel_sizes=(3, 5),
        n_convolutions=(1, 2),
        policies=("none",),
        mixings=("none",),
        shear=(0.0, 0.0),
    ),
}
"""`default`; `digits`: no mirror images, small networks; `small`: quick looks at any images."""

"""From a trial to the augmentation of its images."""

from spaces.augmentation import Augmentation
from spaces.ranges import Space
from spaces.suggestions.asking import ask_choice, ask_number
from spaces.task import Task
from spaces.trial import Trial

_SMALLEST_TO_SHRINK = 24


def suggest_augmentation(trial: Trial, space: Space, task: Task) -> Augmentation:
    """Sample an augmentation; every name it asks for starts with `augmentation.`.

    The strengths have few steps, one of them 0: a short training of a small network is better
    off with little augmentation, and a random point should often have little. TrivialAugment
    rotates, shears and changes colors itself, so beside it those strengths are not asked for.
    Small images have no pixels to spare in the early steps.
    """
    policy = ask_choice(trial, "augmentation.policy", space.policies)
    mixing = ask_choice(trial, "augmentation.mixing", space.mixings)
    rotation = scale = shear = jitter = mixing_alpha = 0.0
    if policy == "none":
        rotation = ask_number(trial, "augmentation.rotation", space.rotation, step=15)
        scale = ask_number(trial, "augmentation.scale", space.scale, step=0.1)
        shear = ask_number(trial, "augmentation.shear", space.shear, step=10)
        jitter = ask_number(trial, "augmentation.jitter", space.jitter, step=0.2)
    early_size = 1.0
    if task.image_size >= _SMALLEST_TO_SHRINK:
        early_size = ask_number(trial, "augmentation.early_size", space.early_size, step=0.25)
    if mixing != "none":
        mixing_alpha = ask_number(trial, "augmentation.mixing_alpha", space.mixing_alpha, step=0.4)
    return Augmentation(
        flip=ask_choice(trial, "augmentation.flip", space.flips),
        crop=ask_number(trial, "augmentation.crop", space.crop, step=1 / 32),
        rotation=rotation,
        scale=scale,
        shear=shear,
        jitter=jitter,
        erasing=ask_number(trial, "augmentation.erasing", space.erasing, step=0.25),
        policy=policy,
        mixing=mixing,
        mixing_alpha=mixing_alpha,
        early_size=early_size,
    )

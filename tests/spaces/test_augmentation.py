from dataclasses import replace

import pytest
from optuna.trial import FixedTrial

from spaces.augmentation import NO_AUGMENTATION, early_pixels
from spaces.errors import SpaceError
from spaces.space import Space
from spaces.suggestions.augmentation import suggest_augmentation
from spaces.task import Task

NOTHING = replace(NO_AUGMENTATION, mixing_alpha=0.0)


def test_every_augmentation_can_be_off(cifar: Task) -> None:
    names = ("crop", "rotation", "scale", "shear", "jitter", "erasing")
    off = {f"augmentation.{name}": 0.0 for name in names}
    off |= {f"augmentation.{name}": "none" for name in ("flip", "policy", "mixing")}  # type: ignore[misc]
    off["augmentation.early_size"] = 1.0

    assert suggest_augmentation(FixedTrial(off), Space(), cifar) == NOTHING


def test_a_policy_takes_the_place_of_what_it_does_itself(cifar: Task) -> None:
    trial = FixedTrial(
        {
            "augmentation.flip": "random",
            "augmentation.crop": 1 / 16,
            "augmentation.erasing": 0.25,
            "augmentation.policy": "trivial",
            "augmentation.mixing": "cutmix",
            "augmentation.mixing_alpha": 1.0,
            "augmentation.early_size": 0.75,
        }
    )

    chosen = suggest_augmentation(trial, Space(), cifar)

    assert chosen == replace(
        NOTHING,
        flip="random",
        crop=1 / 16,
        erasing=0.25,
        policy="trivial",
        mixing="cutmix",
        mixing_alpha=1.0,
        early_size=0.75,
    )


@pytest.mark.parametrize(("size", "is_asked"), [(23, False), (24, True), (224, True)])
def test_small_images_have_no_pixels_to_spare(size: int, is_asked: bool) -> None:  # noqa: FBT001
    task = Task(image_size=size, channels=3, n_classes=2)
    space = Space(policies=("trivial",), mixings=("none",), flips=("none",))
    answers = {"augmentation.crop": 0.0, "augmentation.erasing": 0.0}
    trial = FixedTrial({**answers, "augmentation.early_size": 0.75})

    chosen = suggest_augmentation(trial, space, task)

    assert chosen.early_size == (0.75 if is_asked else 1.0)
    assert ("augmentation.early_size" in trial.params) == is_asked


def test_early_images_have_their_share_of_the_side_and_two_pixels_more_than_half() -> None:
    assert [early_pixels(0.75, size) for size in (24, 32, 33, 224)] == [18, 24, 25, 168]
    assert [early_pixels(0.5, size) for size in (24, 32, 224)] == [14, 18, 114]
    assert [early_pixels(1.0, size) for size in (4, 32, 224)] == [4, 32, 224]


def test_a_recipe_that_does_not_say_has_whole_images() -> None:
    assert NOTHING.early_size == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 1.5}, r"augmentation\.crop must be in \[0, 1\], got 1\.5"),
        ({"jitter": -0.5}, r"augmentation\.jitter must be in \[0, 1\], got -0\.5"),
        ({"rotation": 200.0}, r"augmentation\.rotation must be from 0 to 180 degrees, got 200"),
        ({"shear": -1.0}, r"augmentation\.shear must be from 0 to 180 degrees, got -1"),
        ({"early_size": 0.4}, r"augmentation\.early_size must be in \[0\.5, 1\], got 0\.4"),
        ({"mixing": "mixup"}, r"augmentation\.mixing_alpha must be above 0, got 0\.0"),
    ],
)
def test_strengths_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        replace(NOTHING, **changes)  # type: ignore[arg-type]

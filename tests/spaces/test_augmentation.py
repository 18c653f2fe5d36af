from dataclasses import replace

import pytest
from optuna.trial import FixedTrial

from spaces.augmentation import Augmentation
from spaces.errors import SpaceError
from spaces.space import Space
from spaces.suggestions.augmentation import suggest_augmentation

NOTHING = Augmentation(
    flip="none",
    crop=0.0,
    rotation=0.0,
    scale=0.0,
    shear=0.0,
    jitter=0.0,
    erasing=0.0,
    policy="none",
    mixing="none",
    mixing_alpha=0.0,
)


def test_every_augmentation_can_be_off() -> None:
    names = ("crop", "rotation", "scale", "shear", "jitter", "erasing")
    off = {f"augmentation.{name}": 0.0 for name in names}
    off |= {f"augmentation.{name}": "none" for name in ("flip", "policy", "mixing")}  # type: ignore[misc]

    assert suggest_augmentation(FixedTrial(off), Space()) == NOTHING


def test_a_policy_takes_the_place_of_what_it_does_itself() -> None:
    trial = FixedTrial(
        {
            "augmentation.flip": "random",
            "augmentation.crop": 1 / 16,
            "augmentation.erasing": 0.25,
            "augmentation.policy": "trivial",
            "augmentation.mixing": "cutmix",
            "augmentation.mixing_alpha": 1.0,
        }
    )

    chosen = suggest_augmentation(trial, Space())

    assert chosen == replace(
        NOTHING,
        flip="random",
        crop=1 / 16,
        erasing=0.25,
        policy="trivial",
        mixing="cutmix",
        mixing_alpha=1.0,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 1.5}, r"augmentation\.crop must be in \[0, 1\], got 1\.5"),
        ({"jitter": -0.5}, r"augmentation\.jitter must be in \[0, 1\], got -0\.5"),
        ({"rotation": 200.0}, r"augmentation\.rotation must be from 0 to 180 degrees, got 200"),
        ({"shear": -1.0}, r"augmentation\.shear must be from 0 to 180 degrees, got -1"),
        ({"mixing": "mixup"}, r"augmentation\.mixing_alpha must be above 0, got 0\.0"),
    ],
)
def test_strengths_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        replace(NOTHING, **changes)  # type: ignore[arg-type]

from collections.abc import Callable
from dataclasses import replace

import pytest

from spaces.architecture import Architecture, Stage, n_whitening_filters, stem_stride
from spaces.errors import SpaceError
from spaces.task import Task


def test_the_first_layer_leaves_48_pixels_or_less() -> None:
    sizes = (4, 32, 48, 49, 64, 96, 97, 192, 224, 384, 385, 512)

    assert [stem_stride(size) for size in sizes] == [1, 1, 1, 2, 2, 2, 4, 4, 8, 8, 16, 16]


def test_whitening_filters_are_directions_and_their_negatives() -> None:
    assert [n_whitening_filters(3, stride) for stride in (1, 2, 4, 8)] == [24, 48, 96, 96]
    assert n_whitening_filters(1, 1) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ()}, r"architecture\.stages must hold at least one stage, got none"),
        ({"dropout": 1.0}, r"architecture\.dropout must be in \[0, 1\), got 1\.0"),
        ({"stem_width": 0}, r"architecture\.stem_width must be at least 1, got 0"),
        ({"logit_scale": 0.0}, r"architecture\.logit_scale must be above 0, got 0\.0"),
    ],
)
def test_a_shape_that_nothing_can_build_is_refused(
    make_architecture: Callable[..., Architecture], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SpaceError, match=message):
        replace(make_architecture(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "kernel_size", "n_convolutions", "message"),
    [
        (0, 3, 1, r"at least 1, got 0 and 1"),
        (8, 3, 0, r"at least 1, got 8 and 0"),
        (8, 4, 1, r"stage\.kernel_size must be 1, 3, 5 or 7, got 4"),
    ],
)
def test_a_stage_that_nothing_can_build_is_refused(
    width: int, kernel_size: int, n_convolutions: int, message: str
) -> None:
    with pytest.raises(SpaceError, match=message):
        Stage(width=width, kernel_size=kernel_size, n_convolutions=n_convolutions)


@pytest.mark.parametrize(
    ("image_size", "channels", "n_classes", "message"),
    [
        (3, 3, 10, r"image_size must be at least 4 pixels, got 3"),
        (32, 4, 10, r"channels must be 1 or 3, got 4"),
        (32, 3, 1, r"n_classes must be at least 2, got 1"),
    ],
)
def test_a_task_that_no_network_accepts_is_refused(
    image_size: int, channels: int, n_classes: int, message: str
) -> None:
    with pytest.raises(SpaceError, match=message):
        Task(image_size=image_size, channels=channels, n_classes=n_classes)

from dataclasses import replace
from typing import Any

import pytest
import torch
from padding import pad_images
from torch import Generator, Tensor
from torchvision.transforms import v2

from spaces.augmentation import NO_AUGMENTATION
from spaces.transforms import augment, crop, draw_flips, erase, normalize, shrink

EVERYTHING: dict[str, Any] = {
    "rotation": 20.0,
    "scale": 0.2,
    "shear": 10.0,
    "jitter": 0.4,
    "erasing": 0.3,
    "policy": "trivial",
}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def random_images(n: int, *, channels: int = 3, size: int = 8) -> Tensor:
    shape = (n, size, size, channels)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator(99))


def test_normalized_pixels_are_standard_scores() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 1, 1, 3)

    normalized = normalize(images, MEAN, STD)

    expected = torch.tensor([(0 - 0.5) / 0.2, (1 - 0.4) / 0.25, (0.2 - 0.3) / 0.3])
    torch.testing.assert_close(normalized.view(3), expected)


def test_normalized_batches_have_channels_last_memory() -> None:
    normalized = normalize(random_images(4), MEAN, STD)

    assert normalized.shape == (4, 3, 8, 8)
    assert normalized.is_contiguous(memory_format=torch.channels_last)


def test_padding_is_torchs_reflection() -> None:
    images = random_images(3)

    padded = pad_images(images, 4)

    by_torch = torch.nn.functional.pad(images.permute(0, 3, 1, 2).float(), (4,) * 4, "reflect")
    torch.testing.assert_close(padded.permute(0, 3, 1, 2).float(), by_torch)


def test_padding_wider_than_the_image_is_reflected_again() -> None:
    line = torch.tensor([1, 2, 3], dtype=torch.uint8).view(1, 1, 3, 1)

    padded = pad_images(line, 3)

    assert padded[0, 3, :, 0].tolist() == [2, 3, 2, 1, 2, 3, 2, 1, 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_without_shift_is_the_image(channels: int) -> None:
    images = random_images(5, channels=channels)
    rows = torch.tensor([4, 0, 0, 2])

    cropped = crop(
        pad_images(images, 3),
        rows,
        torch.zeros(4, dtype=torch.bool),
        pad=3,
        shift=0,
        generator=generator(),
    )

    assert torch.equal(cropped, images[rows])


def test_mirrored_rows_are_mirrored_and_the_others_are_not() -> None:
    images = random_images(2)

    cropped = crop(
        pad_images(images, 2),
        torch.tensor([0, 1]),
        torch.tensor([True, False]),
        pad=2,
        shift=0,
        generator=generator(),
    )

    assert torch.equal(cropped[0], images[0].flip(1))
    assert torch.equal(cropped[1], images[1])


def test_every_shift_within_reach_occurs_and_no_other() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1)
    store = pad_images(image, 3)
    allowed = {
        bytes(store[0, y : y + 8, x : x + 8].contiguous().view(-1).tolist())
        for y in range(1, 6)
        for x in range(1, 6)
    }

    cropped = crop(
        store,
        torch.zeros(2000, dtype=torch.int64),
        torch.zeros(2000, dtype=torch.bool),
        pad=3,
        shift=2,
        generator=generator(),
    )

    assert {bytes(each.view(-1).tolist()) for each in cropped} == allowed


def test_the_padding_limits_the_shift() -> None:
    store = pad_images(random_images(1), 1)

    cropped = crop(
        store,
        torch.zeros(100, dtype=torch.int64),
        torch.zeros(100, dtype=torch.bool),
        pad=1,
        shift=7,
        generator=generator(),
    )

    assert len(cropped.unique(dim=0)) == 9


def test_two_epochs_of_alternating_flips_show_both_sides_of_every_image() -> None:
    sides = torch.rand(50, generator=generator()) < 0.5

    even = draw_flips("alternating", sides, epoch=4, generator=generator())
    odd = draw_flips("alternating", sides, epoch=5, generator=generator())

    assert torch.equal(even, sides)
    assert torch.equal(odd, ~sides)


def test_half_of_the_random_flips_are_mirrored_and_no_flip_mirrors_none() -> None:
    sides = torch.ones(10_000, dtype=torch.bool)

    coin = draw_flips("random", sides, epoch=0, generator=generator())
    never = draw_flips("none", sides, epoch=0, generator=generator())

    assert abs(int(coin.sum()) - 5000) < 250
    assert not never.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_augmentation_of_nothing_is_normalization(channels: int) -> None:
    images = random_images(6, channels=channels)
    mean, std = MEAN[:channels], STD[:channels]

    augmented = augment(images, NO_AUGMENTATION, mean=mean, std=std, generator=generator())

    assert torch.equal(augmented, normalize(images, mean, std))


def test_an_augmentation_of_nothing_draws_nothing() -> None:
    source = generator()

    augment(random_images(6), NO_AUGMENTATION, mean=MEAN, std=STD, generator=source)

    assert torch.equal(source.get_state(), generator().get_state())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EVERYTHING)
def test_one_seed_gives_one_batch_and_another_seed_another(name: str, channels: int) -> None:
    images = random_images(40, channels=channels)
    augmentation = replace(NO_AUGMENTATION, **{name: EVERYTHING[name]})
    mean, std = MEAN[:channels], STD[:channels]

    first, again, other = (
        augment(images, augmentation, mean=mean, std=std, generator=generator(seed))
        for seed in (1, 1, 2)
    )

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_at_once_keeps_shape_and_range(channels: int) -> None:
    images = random_images(60, channels=channels)
    mean, std = MEAN[:channels], STD[:channels]
    everything = replace(NO_AUGMENTATION, **EVERYTHING)

    augmented = augment(images, everything, mean=mean, std=std, generator=generator())

    black = normalize(torch.zeros_like(images[:1]), mean, std)
    white = normalize(torch.full_like(images[:1], 255), mean, std)
    assert augmented.shape == (60, channels, 8, 8)
    assert (augmented >= black - 1e-4).all()
    assert (augmented <= white + 1e-4).all()


def test_the_images_that_go_in_stay_as_they_are() -> None:
    images = random_images(20)
    before = images.clone()

    augment(
        images, replace(NO_AUGMENTATION, **EVERYTHING), mean=MEAN, std=STD, generator=generator()
    )

    assert torch.equal(images, before)


def test_one_square_of_each_image_is_erased() -> None:
    images = torch.ones(500, 3, 8, 8)

    erased = erase(images, 0.4, generator()) == 0

    rows, columns = erased[:, 0].any(2), erased[:, 0].any(1)
    assert torch.equal(erased.sum((1, 2, 3)), torch.full((500,), 3 * 3 * 3))
    assert torch.equal(rows.sum(1), torch.full((500,), 3))
    assert torch.equal(columns.sum(1), torch.full((500,), 3))
    assert rows.any(0).all()


def test_an_erased_share_of_one_leaves_nothing() -> None:
    assert not erase(torch.ones(3, 1, 4, 4), 1.0, generator()).any()


@pytest.mark.parametrize("name", EVERYTHING)
def test_augmented_batches_have_channels_last_memory(name: str) -> None:
    augmentation = replace(NO_AUGMENTATION, **{name: EVERYTHING[name]})

    augmented = augment(random_images(9), augmentation, mean=MEAN, std=STD, generator=generator())

    assert augmented.is_contiguous(memory_format=torch.channels_last)


def test_a_cut_out_part_of_the_store_is_normalized_like_any_image() -> None:
    images = random_images(3)

    inside = normalize(pad_images(images, 2)[:, 2:-2, 2:-2], MEAN, STD)

    assert torch.equal(inside, normalize(images, MEAN, STD))
    assert inside.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [6, 4])
def test_smaller_images_are_those_of_torchvision(size: int) -> None:
    images = normalize(random_images(4), MEAN, STD)

    smaller = shrink(images, size)

    torch.testing.assert_close(smaller, v2.Resize(size)(images))
    assert smaller.is_contiguous(memory_format=torch.channels_last)


def test_images_of_the_right_size_are_left_alone() -> None:
    images = normalize(random_images(4), MEAN, STD)

    assert shrink(images, 8) is images

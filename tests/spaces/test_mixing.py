from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from spaces.augmentation import NO_AUGMENTATION, Mixing
from spaces.mixing import cut_mix, draw_share, mix, mix_up

LABELS = torch.tensor([0, 1, 2, 3])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*, channels: int = 3) -> Tensor:
    return torch.rand(4, channels, 8, 8, generator=generator())


def test_no_mixing_leaves_images_and_labels_alone() -> None:
    images = random_images()

    mixed = mix(images, LABELS, NO_AUGMENTATION, generator())

    assert mixed.images is images
    assert mixed.share == 1.0
    assert torch.equal(mixed.labels, mixed.other_labels)


def test_mixup_is_torchvisions() -> None:
    images = random_images()

    mixed = mix_up(images, 0.3)

    expected = v2.MixUp(num_classes=4).transform(
        images, {"labels": LABELS, "batch_size": 4, "lam": 0.3}
    )
    torch.testing.assert_close(mixed, expected)


def test_cutmix_is_torchvisions() -> None:
    images = random_images()

    mixed, share = cut_mix(images.clone(), 0.75, center=(0.9, 0.5))

    # Half the width is int(0.25 * 8) = 2 around x = 7 and y = 4: a box of 3 by 4 pixels.
    box = (5, 2, 8, 6)
    settings = {"labels": LABELS, "batch_size": 4, "box": box, "lam_adjusted": share}
    assert share == 1 - 12 / 64
    assert torch.equal(mixed, v2.CutMix(num_classes=4).transform(images, settings))


def test_a_share_of_one_keeps_every_image() -> None:
    images = random_images()

    pasted, share = cut_mix(images.clone(), 1.0, center=(0.5, 0.5))

    assert torch.equal(mix_up(images, 1.0), images)
    assert torch.equal(pasted, images)
    assert share == 1.0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_images_that_show_their_label_show_their_mixed_label(
    mixing: Mixing, channels: int
) -> None:
    for seed in range(20):
        images = LABELS.float().view(4, 1, 1, 1).expand(4, channels, 8, 8).clone()

        mixed = mix(images, LABELS, replace(NO_AUGMENTATION, mixing=mixing), generator(seed))

        expected = mixed.share * mixed.labels + (1 - mixed.share) * mixed.other_labels
        torch.testing.assert_close(mixed.images.mean((1, 2, 3)), expected)
        assert 0 <= mixed.share <= 1


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_one_seed_gives_one_mixture_and_another_seed_another(mixing: Mixing) -> None:
    augmentation = replace(NO_AUGMENTATION, mixing=mixing)

    first, again, other = (
        mix(random_images(), LABELS, augmentation, generator(seed)).images for seed in (1, 1, 2)
    )

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shares_have_the_moments_of_the_beta_distribution() -> None:
    source = generator()

    shares = torch.tensor([draw_share(0.5, source) for _ in range(4000)])

    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert abs(float(shares.mean()) - 0.5) < 0.02
    assert abs(float(shares.var()) - 1 / 8) < 0.01

"""What it costs to vary images: whole batches at once, beside torchvision's image by image.

    python benchmarks/augmentation.py

Our side varies batches of 512 images of 32 px, as a training does it, each kind by itself: the
time of a batch with it minus that of one without (of crop and mirror, and of the normalization:
their own). Torchvision's side are `transforms.v2` on single tensors, `uint8` where they take it,
with the same strengths; mixup and cutmix it applies to whole batches too. All in one thread, CPU
time of this process, the fastest of some repeats.

The bars are microseconds for an image on one core of an AMD Zen 5, measured before this code was
written; on a slower one they may be missed.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from harness import Bar, Outcome, fastest_seconds, run_benchmark
from torch import Generator, Tensor
from torchvision.transforms import v2

from search.process import prepare_process
from spaces.augmentation import NO_AUGMENTATION
from spaces.mixing import mix
from spaces.transforms import augment, crop, draw_flips, normalize, shrink

SIZE, PAD, N_BATCH, N_STORED = 32, 4, 512, 4096
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
N_SINGLE = 200
N_DRAWS = 32
"""Batches that are mixed for one time, since their rectangles differ in size."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to vary images."""

    ours: Callable[[], object]
    """Varies a batch."""
    without: Callable[[], object]
    """The same but for this kind."""
    theirs: Callable[[], object]
    """Varies images with torchvision."""
    n_ours: int = N_BATCH
    """Images that our side varies."""
    n_theirs: int = N_SINGLE
    """Images that torchvision varies."""
    limit: float | None = None
    """Microseconds for an image; None: nothing is promised."""


def measure(flags: argparse.Namespace) -> Outcome:
    """Time all kinds; see the module."""
    prepare_process(1)
    n_repeats = 10 if flags.quick else 40
    kinds = _kinds()
    costs = {
        name: (
            _cost(kind, n_repeats),
            1e6 * fastest_seconds(kind.theirs, n_repeats // 4) / kind.n_theirs,
        )
        for name, kind in kinds.items()
    }
    return Outcome(
        title=f"microseconds for an image of {SIZE} px, one thread",
        headings=("", "whole batch", "torchvision", "times"),
        rows=[
            (name, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.1f}")
            for name, (ours, theirs) in costs.items()
        ],
        bars=[
            Bar(name=name, value=costs[name][0], limit=kind.limit, better="lower", unit=" us")
            for name, kind in kinds.items()
            if kind.limit is not None
        ],
        figures={name: {"ours": ours, "theirs": theirs} for name, (ours, theirs) in costs.items()},
    )


def _kinds() -> Mapping[str, Kind]:
    generator = Generator().manual_seed(0)
    padded = SIZE + 2 * PAD
    store = torch.randint(256, (N_STORED, padded, padded, 3), generator=generator).byte()
    rows = torch.randperm(N_STORED, generator=generator)[:N_BATCH]
    sides = torch.rand(N_BATCH, generator=generator) < 0.5
    pixels = store[rows][:, PAD:-PAD, PAD:-PAD].contiguous()
    normalized = normalize(pixels, MEAN, STD)
    labels = torch.arange(N_BATCH) % 10
    singles = list(pixels[:N_SINGLE].permute(0, 3, 1, 2).contiguous())
    floats = [image.float() / 255 for image in singles]

    def cut() -> object:
        mirrored = draw_flips("random", sides, epoch=0, generator=generator)
        return crop(store, rows, mirrored, pad=PAD, shift=PAD, generator=generator)

    def plain() -> object:
        return normalize(pixels, MEAN, STD)

    def varied(**changes: Any) -> Callable[[], object]:
        chosen = replace(NO_AUGMENTATION, **changes)
        return lambda: augment(pixels, chosen, mean=MEAN, std=STD, generator=generator)

    def mixed(**changes: Any) -> Callable[[], object]:
        chosen = replace(NO_AUGMENTATION, **changes)
        return lambda: [mix(normalized, labels, chosen, generator) for _ in range(N_DRAWS)]

    def drawn(transform: Callable[[Tensor, Tensor], object]) -> Callable[[], object]:
        return lambda: [transform(normalized, labels) for _ in range(N_DRAWS)]

    def each(transform: Callable[[Tensor], Tensor], images: list[Tensor]) -> Callable[[], object]:
        return lambda: [transform(image) for image in images]

    def nothing() -> object:
        return None

    crop_and_flip = v2.Compose(
        [v2.RandomCrop(SIZE, padding=PAD, padding_mode="reflect"), v2.RandomHorizontalFlip()]
    )
    to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    area = (0.25, 0.25)
    affine = v2.RandomAffine(
        15, scale=(0.8, 1.2), shear=10, interpolation=v2.InterpolationMode.BILINEAR
    )
    return {
        "crop and mirror": Kind(
            ours=cut, without=nothing, theirs=each(crop_and_flip, singles), limit=6.1
        ),
        "normalize": Kind(ours=plain, without=nothing, theirs=each(to_float, singles), limit=3.8),
        "erase": Kind(
            ours=varied(erasing=0.5), without=plain, limit=3.3,
            theirs=each(v2.RandomErasing(1.0, scale=area, ratio=(1.0, 1.0)), floats),
        ),
        "color jitter": Kind(
            ours=varied(jitter=0.4), without=plain, limit=11,
            theirs=each(v2.ColorJitter(0.4, 0.4, 0.4), singles),
        ),
        "rotate, scale, shear": Kind(
            ours=varied(rotation=15.0, scale=0.2, shear=10.0), without=plain, limit=21,
            theirs=each(affine, singles),
        ),
        "TrivialAugment": Kind(
            ours=varied(policy="trivial"), without=plain, limit=18,
            theirs=each(v2.TrivialAugmentWide(), singles),
        ),
        "mixup": Kind(
            ours=mixed(mixing="mixup"), without=nothing, limit=1.3, n_ours=N_BATCH * N_DRAWS,
            n_theirs=N_BATCH * N_DRAWS, theirs=drawn(v2.MixUp(num_classes=10)),
        ),
        "cutmix": Kind(
            ours=mixed(mixing="cutmix"), without=nothing, limit=1.5, n_ours=N_BATCH * N_DRAWS,
            n_theirs=N_BATCH * N_DRAWS, theirs=drawn(v2.CutMix(num_classes=10)),
        ),
        "three quarters of the side": Kind(
            ours=lambda: shrink(normalized, 24), without=nothing,
            theirs=each(v2.Resize(24), floats),
        ),
    }  # fmt: skip


def _cost(kind: Kind, n_repeats: int) -> float:
    """Return the microseconds for an image that a kind adds."""
    whole, rest = (fastest_seconds(call, n_repeats) for call in (kind.ours, kind.without))
    return 1e6 * (whole - rest) / kind.n_ours


if __name__ == "__main__":
    run_benchmark("Time augmentations.", measure)

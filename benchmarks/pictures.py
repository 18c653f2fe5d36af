"""Folders of images for the benchmarks: taken from the user's, or drawn."""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from search.errors import ConfigError

SIZE = 32
N_CLASSES = 10
_SUFFIXES = (".jpg", ".jpeg", ".png")


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the user's images."""
    parser.add_argument(
        "--data", type=Path, help="folder with train/CLASS/*.jpg and test/CLASS/*.jpg of 32 px"
    )


def check_data(flags: argparse.Namespace) -> None:
    """Refuse to measure on drawn images what only real ones can tell, but for a quick look.

    Raises:
        ConfigError: No folder was given.
    """
    if flags.data is None and not flags.quick:
        raise ConfigError("--data: give the CIFAR-10 folder; only --quick draws its images.")


def make_folder(root: Path, counts: Mapping[str, int], *, source: Path | None) -> Path:
    """Make a folder `SPLIT/CLASS/*` with some images of each split, classes in equal shares.

    Args:
        root: Where; must not exist.
        counts: Images by split; `val` is taken from the source's `train`, after those of `train`.
        source: A folder with `train/CLASS/*` and `test/CLASS/*`; None: images are drawn.

    Returns:
        `root`.

    Raises:
        ConfigError: The source has too few images.
    """
    if source is None:
        _draw(root, counts)
        return root
    used = {"train": 0, "test": 0}
    for split, count in counts.items():
        origin = "test" if split == "test" else "train"
        classes = sorted(path for path in (source / origin).glob("*") if path.is_dir())
        if not classes:
            raise ConfigError(f"{source / origin}: expected one folder of images for each class.")
        each = count // len(classes)
        for folder in classes:
            (root / split / folder.name).mkdir(parents=True)
            files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
            chosen = files[used[origin] : used[origin] + each]
            if len(chosen) < each:
                raise ConfigError(
                    f"{folder}: has {len(files)} images, too few for this benchmark."
                )
            for file in chosen:
                shutil.copyfile(file, root / split / folder.name / file.name)
        used[origin] += each
    return root


def _draw(root: Path, counts: Mapping[str, int]) -> None:
    """Draw gratings under noise, of another direction and color for each class."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    for split, count in counts.items():
        for label in range(N_CLASSES):
            folder = root / split / f"{label}"
            folder.mkdir(parents=True)
            angle = np.pi * label / N_CLASSES
            across = rows * np.sin(angle) + columns * np.cos(angle)
            for number in range(count // N_CLASSES):
                wave = np.sin(0.7 * across + generator.uniform(0, 2 * np.pi))
                color = 0.5 + 0.5 * np.cos(label + np.arange(3))
                noise = generator.normal(0, 90, (SIZE, SIZE, 3))
                pixels = 128 + 60 * wave[:, :, None] * color + noise
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{number:05d}.jpg", quality=90)

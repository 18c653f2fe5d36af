from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakePictures = Callable[..., Path]


@pytest.fixture
def make_pictures(tmp_path: Path) -> MakePictures:
    """Write small pictures, all different, under the given relative paths."""

    def make(*names: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
        root = tmp_path / "pictures"
        for seed, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)
        return root

    return make

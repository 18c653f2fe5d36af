"""Shows that a bundle still computes, here and now, what it computed when it was exported.

The test runs on the CPU: a GPU's rounding would need a tolerance so wide that it proved nothing.
Its images are drawn, not taken from the data: no picture of the user leaves the house.
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from ensembles.errors import BundleError
from ensembles.folders import read_recorded_file, write_file
from ensembles.manifest import Manifest, SelfTestRecord
from ensembles.members import compare_tensors, parse_tensors
from ensembles.predictor import Predictor

_TOLERANCE = 1e-4
_N_IMAGES = 3


def write_self_test(folder: Path, predictor: Predictor) -> SelfTestRecord:
    """Draw images, run the ensemble on them, and write both into a folder."""
    image_input = predictor.image_input
    # Soft spots of colour: white noise would drive most networks to probabilities of 0 and 1.
    shape = (_N_IMAGES, image_input.channels, 4, 4)
    spots = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255
    images = nn.functional.interpolate(
        spots, size=(image_input.size, image_input.size), mode="bilinear", align_corners=False
    )
    pixels = images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    expected = np.exp(predictor.predict_log_probabilities(pixels)).astype(np.float32)
    content = safetensors.torch.save(
        {"images": pixels, "probabilities": torch.from_numpy(expected)}
    )
    sha256 = write_file(folder / "self_test.safetensors", content)
    return SelfTestRecord(sha256=sha256, n_bytes=len(content), tolerance=_TOLERANCE)


def run_self_test(folder: Path, manifest: Manifest, predictor: Predictor) -> None:
    """Run the ensemble on the images of the self-test.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        predictor: Its members, on the CPU.

    Raises:
        BundleError: The file is missing or changed, or the probabilities are not the expected.
    """
    record, task = manifest.self_test, manifest.task
    content = read_recorded_file(folder, record.file, n_bytes=record.n_bytes, sha256=record.sha256)
    tensors = parse_tensors(f"{folder}: {record.file}", content)
    shape = (_N_IMAGES, task.image_size, task.image_size, task.channels)
    expected = {
        "images": torch.empty(shape, dtype=torch.uint8, device="meta"),
        "probabilities": torch.empty(_N_IMAGES, task.n_classes, device="meta"),
    }
    compare_tensors(f"{folder}: {record.file}", tensors, expected)
    probabilities = np.exp(predictor.predict_log_probabilities(tensors["images"]))
    difference = np.abs(probabilities - tensors["probabilities"].numpy()).max()
    if not difference <= record.tolerance:  # also true of a difference that is not a number
        raise BundleError(
            f"{folder} fails its self-test: its probabilities differ by {difference:.2g} from "
            f"those it was exported with ({record.tolerance:g} is allowed)."
        )

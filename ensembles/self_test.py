"""Shows that a bundle still computes, here and now, what it computed when it was exported.

The test runs on the CPU: a GPU's rounding would need a tolerance so wide that it proved nothing.
Its images are drawn, not taken from the data: no picture of the user leaves the house.

Of a cascade, what every stage says of every image is tested, not where an image leaves it: a
probability near a threshold may fall on its other side by rounding, and a few drawn images would
leave most stages out.
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ensembles.cascade import Cascade
from ensembles.errors import BundleError
from ensembles.folders import read_recorded_file, write_file
from ensembles.manifest import Manifest, SelfTestRecord
from ensembles.members import compare_tensors, parse_tensors
from ensembles.predictor import Predictor

_TOLERANCE = 1e-4
_N_IMAGES = 3


def write_self_test(
    folder: Path, predictor: Predictor, cascade: Cascade | None = None
) -> SelfTestRecord:
    """Draw images, run the ensemble on them, and write both into a folder.

    Args:
        folder: The bundle.
        predictor: Its members, on the CPU.
        cascade: Of these members; each of its stages is run too.

    Returns:
        What the manifest says of it.
    """
    image_input = predictor.image_input
    # Soft spots of colour: white noise would drive most networks to probabilities of 0 and 1.
    shape = (_N_IMAGES, image_input.channels, 4, 4)
    spots = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255
    images = nn.functional.interpolate(
        spots, size=(image_input.size, image_input.size), mode="bilinear", align_corners=False
    )
    pixels = images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    expected = {
        name: torch.from_numpy(values.astype(np.float32))
        for name, values in _predict(predictor, pixels, cascade).items()
    }
    content = safetensors.torch.save({"images": pixels, **expected})
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
    cascade = None if manifest.format_version == 1 else manifest.cascade
    content = read_recorded_file(folder, record.file, n_bytes=record.n_bytes, sha256=record.sha256)
    tensors = parse_tensors(f"{folder}: {record.file}", content)
    shape = (_N_IMAGES, task.image_size, task.image_size, task.channels)
    expected = {
        "images": torch.empty(shape, dtype=torch.uint8, device="meta"),
        "probabilities": torch.empty(_N_IMAGES, task.n_classes, device="meta"),
    }
    if cascade:
        n_stages = len(cascade.stages)
        expected["stages"] = torch.empty(n_stages, _N_IMAGES, task.n_classes, device="meta")
    compare_tensors(f"{folder}: {record.file}", tensors, expected)
    for name, probabilities in _predict(predictor, tensors["images"], cascade).items():
        difference = np.abs(probabilities - tensors[name].numpy()).max()
        if not difference <= record.tolerance:  # also true of a difference that is not a number
            raise BundleError(
                f"{folder} fails its self-test: its {name} differ by {difference:.2g} from "
                f"those it was exported with ({record.tolerance:g} is allowed)."
            )


def _predict(
    predictor: Predictor, images: Tensor, cascade: Cascade | None
) -> dict[str, Float[np.ndarray, "..."]]:
    """Return the probabilities that are tested, by the names of their tensors."""
    probabilities = {"probabilities": np.exp(predictor.predict_log_probabilities(images))}
    if cascade:
        ordered = predictor.predict_members(images)[list(cascade.order)]
        probabilities["stages"] = np.stack(
            [
                np.exp(stage.combination.combine(ordered[: stage.n_members]))
                for stage in cascade.stages
            ]
        )
    return probabilities

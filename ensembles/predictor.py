"""Networks + images -> log-probabilities: the one forward pass of the project.

Search uses it for validation, export for the self-test, `predict` for new photos. So the number
that chose a member is the number that the member gives later.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from ensembles.cascade import Cascade, CascadeResult
from ensembles.combination import Combination
from ensembles.errors import EnsembleError
from ensembles.inputs import ImageInput
from spaces.transfer import send
from spaces.transforms import normalize

_PIXELS_AT_ONCE = 1 << 22
"""About 80 images of 224 px: features of such a batch fit in a few gigabytes."""


def images_at_once(image_size: int) -> int:
    """Return how many images to run in one forward pass: fewer, the larger they are.

    Args:
        image_size: Their side in pixels.
    """
    return max(1, min(500, _PIXELS_AT_ONCE // image_size**2))


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """The members of an ensemble, ready to run on one device."""

    networks: tuple[nn.Module, ...]
    """In the order of the combination's weights."""
    combination: Combination
    image_input: ImageInput

    def __post_init__(self) -> None:
        """Refuse weights without networks."""
        if len(self.networks) != self.combination.n_members:
            raise EnsembleError(
                f"the combination has {self.combination.n_members} members, "
                f"got {len(self.networks)} networks."
            )

    def predict_log_probabilities(
        self,
        images: UInt8[Tensor, "n h w c"],
        *,
        batch_size: int | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> Float[np.ndarray, "n classes"]:
        """Run the members that count and combine what they say.

        Args:
            images: Pixels at the size of `image_input`.
            batch_size: Images in one forward pass; default: see `images_at_once`.
            autocast_dtype: Lower precision for the networks, or None for float32.

        Returns:
            Normalized log-probabilities, float64.
        """
        members = {
            member: self._run(member, images, batch_size, autocast_dtype)
            for member in active_members(self.combination)
        }
        # `combine` wants a row for each member; what has no weight may say anything.
        anything = np.zeros_like(next(iter(members.values())))
        rows = [members.get(member, anything) for member in range(len(self.networks))]
        return self.combination.combine(np.stack(rows))

    def predict_members(
        self, images: UInt8[Tensor, "n h w c"], *, batch_size: int | None = None
    ) -> Float[np.ndarray, "members n classes"]:
        """Run all members, and combine nothing.

        Args:
            images: Pixels at the size of `image_input`.
            batch_size: Images in one forward pass; default: see `images_at_once`.

        Returns:
            Normalized log-probabilities, float32, the members in the order of the weights.
        """
        members = range(len(self.networks))
        return np.stack([self._run(member, images, batch_size, None) for member in members])

    def predict_in_cascade(
        self,
        images: UInt8[Tensor, "n h w c"],
        cascade: Cascade,
        *,
        batch_size: int | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> CascadeResult:
        """Run the members one after another, each on the images that still need it.

        Args:
            images: Pixels at the size of `image_input`.
            cascade: Of these members.
            batch_size: Images in one forward pass; default: see `images_at_once`.
            autocast_dtype: Lower precision for the networks, or None for float32.

        Returns:
            Normalized log-probabilities, and how many members each image needed.
        """
        everything = self._run(cascade.order[0], images, batch_size, autocast_dtype)

        def predict(
            member: int, rows: Int64[np.ndarray, " rows"]
        ) -> Float[np.ndarray, "rows classes"]:
            if member == cascade.order[0]:  # it runs first, on all images
                return everything
            waiting = images[torch.from_numpy(rows).to(images.device)]
            return self._run(member, waiting, batch_size, autocast_dtype)

        n_images, n_classes = everything.shape
        return cascade.run_lazily(predict, n_images=n_images, n_classes=n_classes)

    def _run(
        self,
        member: int,
        images: UInt8[Tensor, "n h w c"],
        batch_size: int | None,
        autocast_dtype: torch.dtype | None,
    ) -> Float[np.ndarray, "n classes"]:
        predicted = predict_log_probabilities(
            self.networks[member],
            images,
            mean=self.image_input.mean,
            std=self.image_input.std,
            batch_size=batch_size,
            autocast_dtype=autocast_dtype,
        )
        log_probabilities: np.ndarray = predicted.cpu().numpy()
        return log_probabilities


def active_members(combination: Combination) -> tuple[int, ...]:
    """Return the positions of the members that the result depends on."""
    decisive = combination.class_weights or tuple((weight,) for weight in combination.weights)
    active = tuple(position for position, weights in enumerate(decisive) if any(weights))
    return active or (0,)  # a stack may have learned biases alone


def predict_log_probabilities(
    network: nn.Module,
    images: UInt8[Tensor, "n h w c"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> Float[Tensor, "n classes"]:
    """Run one network over images, without gradients and in `eval()` mode.

    Args:
        network: Takes normalized float images, gives logits. Its mode is restored afterwards.
        images: Pixels at the network's size, on any device; they travel batch by batch.
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        batch_size: Images in one forward pass; default: see `images_at_once`.
        autocast_dtype: Lower precision for the network itself, or None for float32.

    Returns:
        Natural logarithms of the class probabilities, float32, on the network's device.
    """
    device = _device_of(network, default=images.device)
    batches = []
    with (
        _evaluating(network),
        _full_precision(device, wanted=autocast_dtype is None),
        torch.inference_mode(),
        torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None),
    ):
        for batch in images.split(batch_size or images_at_once(images.shape[1])):
            pixels = normalize(send(batch, device), mean, std)
            logits = network(pixels)
            # bf16 has 8 bits of mantissa: the softmax is float32 whatever the network ran in.
            batches.append(logits.float().log_softmax(dim=1))
    return torch.cat(batches)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Hold every module in `eval()` mode, then give each its own mode back."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _full_precision(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Have a GPU compute float32 as such; TF32 has 10 bits, and a bundle runs on any device."""
    if device.type != "cuda" or not wanted:
        yield
        return
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _device_of(network: nn.Module, *, default: torch.device) -> torch.device:
    """Return where the network's weights are."""
    first = next(network.parameters(), None)
    return default if first is None else first.device

"""What one member costs: time for one image and for many, parameters, bytes."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import safetensors.torch
import torch
from pydantic import ConfigDict
from torch import nn

from ensembles.errors import EnsembleError
from ensembles.inputs import ImageInput
from ensembles.predictor import predict_log_probabilities

LARGE_BATCH = 32
_N_REPEATS = 15
_N_WARM_UPS = 3


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one network, on the CPU of the machine that measured it."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    milliseconds_1: float
    """Median time for one image alone."""
    milliseconds_32: float
    """Median time for 32 images together."""
    n_parameters: int
    n_bytes: int
    """Of the file that holds the weights."""

    def __post_init__(self) -> None:
        """Refuse what no measurement gives."""
        # Written so that NaN is refused too.
        if not (self.milliseconds_1 > 0 and self.milliseconds_32 > 0):
            raise EnsembleError(
                "a cost needs times above 0, "
                f"got {self.milliseconds_1} and {self.milliseconds_32} ms."
            )
        if self.n_parameters < 0 or self.n_bytes < 1:
            raise EnsembleError(
                "a cost needs a number of parameters and at least 1 byte, "
                f"got {self.n_parameters} and {self.n_bytes}."
            )


def measure_cost(network: nn.Module, image_input: ImageInput) -> Cost:
    """Measure a network on the CPU, in one thread, from pixels to log-probabilities.

    Args:
        network: On the CPU, as `build_network` returns it.
        image_input: What its images look like; they are drawn here.

    Returns:
        Medians of 15 repeats after 3 to warm up: other work on the machine comes in bursts.
    """
    size, channels = image_input.size, image_input.channels
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (LARGE_BATCH, size, size, channels), dtype=torch.uint8, generator=generator
    )

    def run(n_images: int) -> Callable[[], object]:
        return lambda: predict_log_probabilities(
            network,
            images[:n_images],
            mean=image_input.mean,
            std=image_input.std,
            batch_size=n_images,
        )

    with _one_thread():
        alone, together = (_median_milliseconds(run(n_images)) for n_images in (1, LARGE_BATCH))
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return Cost(
        milliseconds_1=alone,
        milliseconds_32=together,
        n_parameters=sum(parameter.numel() for parameter in network.parameters()),
        n_bytes=len(safetensors.torch.save(weights)),
    )


def _median_milliseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_N_WARM_UPS + _N_REPEATS):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[_N_WARM_UPS:])


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Out of memory: known by its many names, answered with smaller batches, told to the sampler.

A batch that does not fit is trained on in parts whose gradients are added up; the step is then the
same but for the order of its sums, and for batch norm, whose statistics are those of a part
(Hoffer et al. 2017 call it ghost batch norm). The first step of a trial is the probe, and the
first one with whole images where the early ones are smaller: all others have the same shapes, so a
probe before them would cost each trial a step to learn the same.
"""

import ctypes
import gc
import platform
from dataclasses import dataclass

import optuna
import torch

from search.devices import MemoryUse

# Fewer images make the statistics of batch norm worthless.
MIN_MICRO_BATCH = 4
PIXELS_AT_ONCE = 1 << 22
"""Of the images of a part of a batch on a CPU: 1024 of 64 px."""
CONSTRAINT = "memory"

_WORDS = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "could not create a memory",  # oneDNN; it says no more, whatever it lacks
    "could not create a primitive",
)


class DoesNotFitError(Exception):
    """A network that the memory cannot hold, however small the parts of a batch are."""


@dataclass
class Portions:
    """How many images fit into the memory at a time, in the trial that runs."""

    n_parts: int = 1
    """Parts of a training batch."""
    n_predicted: int | None = None
    """Images in a forward pass without gradients; None: as many as are usual for their size."""

    def reset(self, n_parts: int = 1) -> None:
        """Begin a trial as if everything fitted, in so many parts."""
        self.n_parts, self.n_predicted = n_parts, None

    def micro_batch(self, batch_size: int) -> int:
        """Return the images of the largest part of a batch."""
        return -(-batch_size // self.n_parts)

    def shrink(self, batch_size: int, reason: str) -> None:
        """Train on parts of half the size.

        Args:
            batch_size: Images of the whole batch.
            reason: What went wrong with the parts so far.

        Raises:
            DoesNotFitError: They would have too few images.
        """
        if batch_size < 2 * MIN_MICRO_BATCH * self.n_parts:
            n_images = self.micro_batch(batch_size)
            raise DoesNotFitError(f"even {n_images} images at a time do not fit: {reason}")
        self.n_parts *= 2


def n_parts_at_first(n_images: int, image_size: int, device: torch.device) -> int:
    """Return the parts of a batch that a trial begins with.

    A GPU tells when its memory is full, and is asked for the whole batch. On a CPU the kernel
    ends the process instead, without an error to answer; so there large images train in parts.

    Args:
        n_images: Of the batch.
        image_size: Their side in pixels.
        device: What computes.
    """
    if device.type != "cpu":
        return 1
    n_at_once = max(1, PIXELS_AT_ONCE // image_size**2)
    return min(-(-n_images // n_at_once), max(1, n_images // MIN_MICRO_BATCH))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory could not be had, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(
        words in str(error) for words in _WORDS
    )


def free_memory(device: torch.device) -> None:
    """Give back what nobody refers to any more; call it when the error's traceback is gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # a worker keeps what it frees, see `prepare_process`


def mark_infeasible(trial: optuna.Trial) -> None:
    """Let the sampler learn that a trial is impossible.

    TPE ranks it below all others; samplers that know nothing of constraints see a pruned trial.
    """
    trial.set_constraint(CONSTRAINT, 1.0)
    # The key of Optuna 4, which is the one that the dashboard reads.
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [1.0])


def begin_measuring(device: torch.device) -> None:
    """From now on measure the most memory that this process takes of a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def measure(device: torch.device) -> MemoryUse | None:
    """Return the most memory that was taken since; None where the device has none of its own."""
    if device.type != "cuda":
        return None
    return MemoryUse(
        peak_bytes=torch.cuda.max_memory_reserved(device),
        total_bytes=torch.cuda.get_device_properties(device).total_memory,
    )


def limit_memory(device: torch.device, share: float) -> None:
    """Let this process take no more than a share of a GPU's memory from now on."""
    if device.type == "cuda" and share < 1:
        torch.cuda.empty_cache()  # what is kept in reserve counts
        torch.cuda.set_per_process_memory_fraction(share, device)

"""Settings of a whole process, made once before it trains."""

import ctypes
import logging
import platform
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

logger = logging.getLogger(__name__)

_BOTH_WAYS = (torch.bfloat16, None)
_PROBES = 5
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1


def prepare_process(n_threads: int) -> None:
    """Set threads, memory and precision of this process; call it once in every worker.

    Args:
        n_threads: Compute threads; all workers of a machine together must not have more than it
            has cores (5 to 7 times slower, measured).
    """
    torch.set_num_threads(n_threads)
    _keep_freed_memory()
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        # Convolutions have TF32 by torch's default.
        torch.backends.cuda.matmul.fp32_precision = "tf32"


def choose_autocast_dtype(
    device: torch.device, *, time_step: Callable[[torch.dtype | None], float] | None = None
) -> torch.dtype | None:
    """Return the lower precision that a device computes in fast, None if it has none.

    A CPU says whether it can compute in bf16, not whether it does so by instructions of its own or
    by emulating them, slower than float32. So a step is timed each way.

    Args:
        device: What computes.
        time_step: Returns the seconds of a step in a precision, None for float32; default: those
            of a small network, on the CPU.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else torch.float16
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    time_step = time_step or _time_step
    for dtype in _BOTH_WAYS:
        time_step(dtype)  # the first step pays for what is set up once
    turns = [[time_step(dtype) for dtype in _BOTH_WAYS] for _ in range(_PROBES)]
    low, full = map(min, zip(*turns, strict=True))
    logger.info("a step takes %.2f ms in bf16, %.2f ms in float32", 1000 * low, 1000 * full)
    return torch.bfloat16 if low < full else None


@cache
def _probed_network() -> nn.Module:
    """Build a piece of a network like those that are searched."""
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU()
        )
    return network.to(memory_format=torch.channels_last)


def _time_step(dtype: torch.dtype | None) -> float:
    """Return the CPU seconds of a forward and a backward pass."""
    images = torch.ones(64, 16, 32, 32).to(memory_format=torch.channels_last)
    began = time.process_time()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = _probed_network()(images).float().sum()
    loss.backward()
    return time.process_time() - began


def _keep_freed_memory() -> None:
    """Stop glibc from handing large blocks back to the kernel after each operation.

    Getting them again, page by page, costs 1.3 to 2.3 times the whole step at a batch of 512.
    The price: the process keeps its peak memory until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)

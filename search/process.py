"""Settings of a whole process, made once before it trains."""

import ctypes
import platform

import torch

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


def choose_autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the lower precision that a device computes in fast, None if it has none.

    A CPU without bf16 instructions emulates them, slower than float32.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else torch.float16
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return None


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

"""Tensors on their way to the device that computes, without anybody waiting for them.

CUDA copies from ordinary memory only after all that its stream has still to do: each such copy
would stop the Python loop until the GPU is idle. From pinned memory it does not.
"""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the copy to a GPU is queued, not waited for."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Feed:
    """Sends batches to a GPU while it computes, so that images need not fit into its memory.

    The copies have a stream of their own, and the loop that sends them is at most one step ahead:
    the GPU always has a step to work on, and no more than two batches wait there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._queued_before: torch.cuda.Event | None = None

    def send(self, batch: Tensor) -> Tensor:
        """Return a batch on the device; call it once for each step, before its work is queued."""
        if self._stream is None or batch.device == self._device:
            return batch.to(self._device)
        computing = torch.cuda.current_stream(self._device)
        queued = torch.cuda.Event()
        queued.record(computing)
        if self._queued_before is not None:
            self._queued_before.synchronize()
        self._queued_before = queued
        with torch.cuda.stream(self._stream):
            sent = batch.pin_memory().to(self._device, non_blocking=True)
        computing.wait_stream(self._stream)
        sent.record_stream(computing)
        return sent

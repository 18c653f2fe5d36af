"""Places on devices, one for each worker, chosen before any worker touches CUDA."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from search.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for one worker."""

    number: int
    """From 0, in the order of the table that a user sees."""
    device: str
    """As the user names it: `cpu` or `cuda:1`."""
    n_threads: int
    """Compute threads of the worker."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the worker sets before it touches CUDA."""
        threads = {"OMP_NUM_THREADS": str(self.n_threads), "MKL_NUM_THREADS": str(self.n_threads)}
        if self.device == "cpu":
            return {**threads, "CUDA_VISIBLE_DEVICES": ""}
        return {
            **threads,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": _visible(self.device.removeprefix("cuda:")),
        }

    @property
    def torch_device(self) -> str:
        """The device inside the worker, which sees no other GPU."""
        return "cpu" if self.device == "cpu" else "cuda:0"


def plan_slots(devices: str, n_workers: int | None, *, n_gpus: int) -> list[Slot]:
    """Return one slot for each worker.

    On a CPU, one thread for each worker: with torch's own choice, two workers on two cores were 5
    to 7 times slower than with one thread each (more threads in all than cores).

    Args:
        devices: `auto`, `cpu`, or a list such as `cuda:0,cuda:1`.
        n_workers: Workers in all; None: one per GPU, or one per CPU core.
        n_gpus: GPUs that torch can use.

    Returns:
        The slots; more workers than GPUs share them in turn.

    Raises:
        ConfigError: A device is not known or not there.
    """
    names = _device_names(devices, n_gpus)
    cores = n_usable_cores()
    if names == ["cpu"]:
        count = n_workers or cores
        return [
            Slot(number=number, device="cpu", n_threads=max(1, cores // count))
            for number in range(count)
        ]
    count = n_workers or len(names)
    return [
        Slot(number=number, device=names[number % len(names)], n_threads=max(1, cores // count))
        for number in range(count)
    ]


@cache
def count_gpus(devices: str) -> int:
    """Count the GPUs that torch can use, without loading it where there can be none.

    Args:
        devices: What the user asked for; `cpu` needs no look.
    """
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    if devices == "cpu" or not any(Path(driver).exists() for driver in drivers):
        return 0
    code = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run(  # noqa: S603  # our own interpreter, a constant program
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    return int(asked.stdout) if asked.returncode == 0 else 0


def n_usable_cores() -> int:
    """Count the cores that this process may use: affinity mask and cgroup quota."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:  # noqa: PTH123
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def _device_names(devices: str, n_gpus: int) -> list[str]:
    if devices == "auto":
        return [f"cuda:{index}" for index in range(n_gpus)] or ["cpu"]
    names = [name.strip() for name in devices.split(",")]
    for name in names:
        if not re.fullmatch(r"cpu|cuda:\d+", name):
            raise ConfigError(
                f"devices: expected auto, cpu or a list such as cuda:0,cuda:1, got {devices!r}."
            )
        if name != "cpu" and int(name.removeprefix("cuda:")) >= n_gpus:
            raise ConfigError(f"devices: {name} is not there; torch sees {n_gpus} GPUs here.")
    if "cpu" in names and len(set(names)) > 1:
        raise ConfigError(f"devices: cpu and GPUs cannot be mixed, got {devices!r}.")
    return ["cpu"] if "cpu" in names else names


def _visible(index: str) -> str:
    """Return the entry of CUDA_VISIBLE_DEVICES for a GPU of those that are visible already."""
    outer: Sequence[str] = [
        part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part
    ]
    return outer[int(index)] if int(index) < len(outer) else index

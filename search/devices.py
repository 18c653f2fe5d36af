"""Places on devices, one for each worker, chosen before any worker touches CUDA.

All that is decided about GPUs is decided here, from values that say what there is and what was
measured; nothing here computes, and nobody else knows how a device is named or shared.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from search.errors import ConfigError

MAX_SLOTS_OF_A_GPU = 8
USABLE_SHARE = 0.95
"""Of a GPU's memory, where several workers share it."""
# A trial may take more than the one that was measured; if it takes too much, its batches are cut.
MARGIN = 1.5
CONTEXT_BYTES = 600_000_000
"""What CUDA and its libraries take in each process, beside torch's own memory."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that torch can use, as the driver tells of it."""

    index: int
    """Among those that this process may see, in the order of the bus."""
    uuid: str = ""
    """Without the `GPU-` before it; empty where the driver tells none."""


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """What the trial of one worker took of its GPU."""

    peak_bytes: int
    total_bytes: int

    def n_slots(self) -> int:
        """Return how many such trials the GPU has room for, at least 1."""
        each = MARGIN * self.peak_bytes + CONTEXT_BYTES
        return max(1, min(MAX_SLOTS_OF_A_GPU, int(USABLE_SHARE * self.total_bytes / each)))


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for one worker."""

    number: int
    """From 0, in the order of the table that a user sees."""
    device: str
    """As the user names it: `cpu` or `cuda:1`."""
    n_threads: int
    """Compute threads of the worker."""
    memory_share: float = 1.0
    """Part of the GPU's memory that the worker may take."""

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


def plan_slots(
    devices: str,
    n_workers: int | None,
    *,
    gpus: Sequence[Gpu],
    slots_per_device: str | None = None,
) -> list[Slot]:
    """Return one slot for each worker.

    On a CPU, one thread for each worker: with torch's own choice, two workers on two cores were 5
    to 7 times slower than with one thread each (more threads in all than cores).

    Args:
        devices: `auto`, `cpu`, or a list of GPUs: `0,1`, `cuda:0,cuda:1` or `GPU-7f31,GPU-02`.
        n_workers: Workers in all, at the most; None: one per GPU, or one per CPU core.
        gpus: Those that torch can use.
        slots_per_device: A number, or `auto`: one, until it is measured what a trial takes (see
            `share_out`). None: as many as `n_workers` asks for.

    Returns:
        The slots, which take the devices in turn.

    Raises:
        ConfigError: A device is not known or not there.
    """
    names = _device_names(devices, gpus)
    cores = n_usable_cores()
    per_device = int(slots_per_device) if slots_per_device and slots_per_device.isdigit() else None
    if names == ["cpu"]:
        count = n_workers or per_device or cores
    elif slots_per_device is None:
        count = n_workers or len(names)
    else:
        wanted = len(names) * (per_device or 1)
        count = min(n_workers or wanted, wanted)
    slots = [
        Slot(number=number, device=names[number % len(names)], n_threads=max(1, cores // count))
        for number in range(count)
    ]
    return [_with_fair_share(slot, slots) for slot in slots]


def share_out(
    slots: Sequence[Slot], measured: Mapping[int, MemoryUse], *, n_workers: int | None
) -> list[Slot]:
    """Open more slots on GPUs that have room for more than one trial.

    Args:
        slots: Those there are; a GPU with several of them is left as it is.
        measured: What a trial took, by the number of its slot.
        n_workers: Workers in all, at the most; None: as many as fit, and one for each core.

    Returns:
        The same slots and the new ones after them, each with its share of its GPU.
    """
    of_device = [slot.device for slot in slots]
    limit = n_workers or max(len(slots), n_usable_cores())
    opened = list(slots)
    for slot in slots:
        use = measured.get(slot.number)
        if use is None or slot.device == "cpu" or of_device.count(slot.device) > 1:
            continue
        for _ in range(min(use.n_slots() - 1, limit - len(opened))):
            opened.append(replace(slot, number=1 + max(each.number for each in opened)))
    return [_with_fair_share(slot, opened) for slot in opened]


def _with_fair_share(slot: Slot, slots: Sequence[Slot]) -> Slot:
    n_on_device = sum(each.device == slot.device for each in slots)
    alone = slot.device == "cpu" or n_on_device == 1
    return replace(slot, memory_share=1.0 if alone else USABLE_SHARE / n_on_device)


@cache
def list_gpus(devices: str) -> tuple[Gpu, ...]:
    """List the GPUs that torch can use, without loading it where there can be none.

    Args:
        devices: What the user asked for; `cpu` needs no look.
    """
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    if devices == "cpu" or not any(Path(driver).exists() for driver in drivers):
        return ()
    asked = subprocess.run(  # noqa: S603  # our own interpreter, a constant program
        [sys.executable, "-c", _LIST_GPUS],
        # Else torch counts from the fastest one, and a worker would see another than was meant.
        env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        capture_output=True,
        text=True,
        check=False,
    )
    uuids = json.loads(asked.stdout) if asked.returncode == 0 else []
    return tuple(Gpu(index=index, uuid=uuid) for index, uuid in enumerate(uuids))


_LIST_GPUS = """
import json, torch
properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([str(getattr(each, "uuid", "")) for each in properties]))
"""


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


def _device_names(devices: str, gpus: Sequence[Gpu]) -> list[str]:
    if devices == "auto":
        return [f"cuda:{gpu.index}" for gpu in gpus] or ["cpu"]
    names = [_device_name(name.strip(), devices, gpus) for name in devices.split(",")]
    if "cpu" in names and len(set(names)) > 1:
        raise ConfigError(f"devices: cpu and GPUs cannot be mixed, got {devices!r}.")
    return list(dict.fromkeys(names))


def _device_name(name: str, devices: str, gpus: Sequence[Gpu]) -> str:
    """Return one device as `cpu` or `cuda:1`, however it was named."""
    if name == "cpu":
        return name
    if match := re.fullmatch(r"(?:cuda:)?(\d+)", name):
        found = [gpu for gpu in gpus if gpu.index == int(match[1])]
    elif match := re.fullmatch(r"GPU-([0-9a-f-]+)", name, re.IGNORECASE):
        found = [gpu for gpu in gpus if gpu.uuid.lower().startswith(match[1].lower())]
    else:
        raise ConfigError(
            "devices: expected auto, cpu or a list such as 0,1 or cuda:0,cuda:1 or GPU-7f31, "
            f"got {devices!r}."
        )
    if len(found) != 1:
        known = [f"cuda:{gpu.index} (GPU-{gpu.uuid})" for gpu in gpus]
        many = "names several GPUs" if found else "is not there"
        raise ConfigError(
            f"devices: {name} {many}; torch sees {len(gpus)} GPUs here"
            f"{': ' if known else ''}{', '.join(known)}."
        )
    return f"cuda:{found[0].index}"


def _visible(index: str) -> str:
    """Return the entry of CUDA_VISIBLE_DEVICES for a GPU of those that are visible already."""
    outer: Sequence[str] = [
        part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part
    ]
    return outer[int(index)] if int(index) < len(outer) else index

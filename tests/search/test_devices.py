from pathlib import Path

import pytest

from search import devices
from search.devices import Gpu, MemoryUse, Slot, n_usable_cores, plan_slots, share_out
from search.errors import ConfigError
from search.workers import WorkerOrder

UUIDS = ("7f31aa00-1", "7f31bb00-2", "02cc")


def some_gpus(count: int) -> list[Gpu]:
    """Return GPUs as a driver would tell of them."""
    return [Gpu(index=index, uuid=UUIDS[index]) for index in range(count)]


def test_each_gpu_gets_one_worker_that_sees_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    slots = plan_slots("auto", None, gpus=some_gpus(2))

    assert [slot.device for slot in slots] == ["cuda:0", "cuda:1"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"]
    assert {slot.torch_device for slot in slots} == {"cuda:0"}


def test_a_gpu_is_counted_among_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7f")

    slots = plan_slots("cuda:1,cuda:0", None, gpus=some_gpus(2))

    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["GPU-7f", "3"]


def test_more_workers_than_gpus_share_them_in_turn() -> None:
    slots = plan_slots("auto", 3, gpus=some_gpus(2))

    assert [slot.device for slot in slots] == ["cuda:0", "cuda:1", "cuda:0"]


def test_a_cpu_has_a_slot_for_each_core_with_one_thread() -> None:
    slots = plan_slots("auto", None, gpus=some_gpus(0))

    assert len(slots) == n_usable_cores()
    assert {slot.n_threads for slot in slots} == {1}
    assert {slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots} == {""}


def test_the_only_worker_has_all_cores_as_threads() -> None:
    (slot,) = plan_slots("cpu", 1, gpus=some_gpus(0))

    assert slot.n_threads == n_usable_cores()
    assert slot.environment["OMP_NUM_THREADS"] == str(n_usable_cores())


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("gpu", "or a list such as 0,1 or cuda:0,cuda:1 or GPU-7f31, got 'gpu'"),
        ("cuda:2", r"cuda:2 is not there; torch sees 2 GPUs here: cuda:0 \(GPU-7f31aa00-1\), "),
        ("5", "5 is not there; torch sees 2 GPUs here"),
        ("GPU-7f31", "GPU-7f31 names several GPUs; torch sees 2 GPUs here"),
        ("GPU-99", "GPU-99 is not there"),
        ("cpu,cuda:0", "cpu and GPUs cannot be mixed"),
    ],
)
def test_a_device_that_is_not_there_is_refused(devices: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_slots(devices, None, gpus=some_gpus(2))


def test_a_slot_is_asked_for_its_environment_once_and_before_any_is_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    slots = plan_slots("auto", None, gpus=some_gpus(2))
    orders = [
        WorkerOrder(
            folder=Path("study"),
            slot=slot,
            environment=slot.environment,
            n_trials=1,
            deadline=None,
        )
        for slot in slots
    ]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")  # as the fork server was started

    assert [order.environment["CUDA_VISIBLE_DEVICES"] for order in orders] == ["2", "3"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("1", ["cuda:1"]),
        ("2,0", ["cuda:2", "cuda:0"]),
        ("GPU-02", ["cuda:2"]),
        ("gpu-7F31BB, cuda:0", ["cuda:1", "cuda:0"]),
        ("cuda:1,1,GPU-7f31bb00-2", ["cuda:1"]),
    ],
)
def test_a_gpu_is_named_by_index_or_by_uuid(said: str, expected: list[str]) -> None:
    slots = plan_slots(said, None, gpus=some_gpus(3))

    assert [slot.device for slot in slots] == expected


def test_each_gpu_gets_as_many_workers_as_said_and_each_its_share_of_the_memory() -> None:
    slots = plan_slots("auto", None, gpus=some_gpus(2), slots_per_device="3")

    assert [slot.device for slot in slots] == ["cuda:0", "cuda:1"] * 3
    assert [slot.number for slot in slots] == [*range(6)]
    assert {slot.memory_share for slot in slots} == {0.95 / 3}


def test_no_more_slots_than_workers_are_asked_for() -> None:
    slots = plan_slots("auto", 3, gpus=some_gpus(2), slots_per_device="2")

    assert [slot.device for slot in slots] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [slot.memory_share for slot in slots] == [0.475, 1.0, 0.475]


def test_a_gpu_of_its_own_is_not_limited() -> None:
    slots = plan_slots("auto", None, gpus=some_gpus(2), slots_per_device="auto")

    assert [slot.memory_share for slot in slots] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("peak_gigabytes", "total_gigabytes", "n_slots"),
    [
        # (1.5 x 2 + 0.6) GB for each, in 95 % of the memory.
        (2.0, 24.0, 6),
        (2.0, 8.0, 2),
        (2.0, 7.0, 1),
        (20.0, 24.0, 1),
        (0.05, 80.0, 8),
    ],
)
def test_a_gpu_has_room_for_trials_like_the_one_that_was_measured(
    peak_gigabytes: float, total_gigabytes: float, n_slots: int
) -> None:
    use = MemoryUse(
        peak_bytes=round(1e9 * peak_gigabytes), total_bytes=round(1e9 * total_gigabytes)
    )

    assert use.n_slots() == n_slots


def test_gpus_of_different_size_get_slots_by_what_was_measured_on_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "n_usable_cores", lambda: 32)
    slots = plan_slots("auto", None, gpus=some_gpus(2), slots_per_device="auto")
    measured = {
        0: MemoryUse(peak_bytes=2 * 10**9, total_bytes=12 * 10**9),
        1: MemoryUse(peak_bytes=2 * 10**9, total_bytes=8 * 10**9),
    }

    first = share_out(slots, {0: measured[0]}, n_workers=None)
    both = share_out(first, measured, n_workers=None)

    # 0.95 x 12 / 3.6 = 3.2 and 0.95 x 8 / 3.6 = 2.1.
    assert [slot.device for slot in first] == ["cuda:0", "cuda:1", "cuda:0", "cuda:0"]
    assert [slot.memory_share for slot in first] == [0.95 / 3, 1.0, 0.95 / 3, 0.95 / 3]
    assert [slot.device for slot in both[4:]] == ["cuda:1"]
    assert [slot.number for slot in both] == [*range(5)]
    assert both[1].memory_share == both[4].memory_share == 0.475
    assert share_out(both, measured, n_workers=None) == both


def test_no_more_slots_open_than_there_are_cores_or_workers_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "n_usable_cores", lambda: 3)
    slots = plan_slots("auto", None, gpus=some_gpus(1), slots_per_device="auto")
    measured = {0: MemoryUse(peak_bytes=10**8, total_bytes=10**11)}

    assert len(share_out(slots, measured, n_workers=None)) == 3
    assert len(share_out(slots, measured, n_workers=2)) == 2
    assert len(share_out(slots, measured, n_workers=6)) == 6


def test_a_cpu_has_no_memory_of_its_own_to_share_out() -> None:
    slots = [Slot(number=0, device="cpu", n_threads=1)]

    opened = share_out(slots, {0: MemoryUse(peak_bytes=1, total_bytes=10**12)}, n_workers=8)

    assert opened == slots
    assert len(plan_slots("cpu", None, gpus=[], slots_per_device="5")) == 5

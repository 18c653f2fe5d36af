from pathlib import Path

import pytest

from search.devices import n_usable_cores, plan_slots
from search.errors import ConfigError
from search.workers import WorkerOrder


def test_each_gpu_gets_one_worker_that_sees_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    slots = plan_slots("auto", None, n_gpus=2)

    assert [slot.device for slot in slots] == ["cuda:0", "cuda:1"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"]
    assert {slot.torch_device for slot in slots} == {"cuda:0"}


def test_a_gpu_is_counted_among_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7f")

    slots = plan_slots("cuda:1,cuda:0", None, n_gpus=2)

    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["GPU-7f", "3"]


def test_more_workers_than_gpus_share_them_in_turn() -> None:
    slots = plan_slots("auto", 3, n_gpus=2)

    assert [slot.device for slot in slots] == ["cuda:0", "cuda:1", "cuda:0"]


def test_a_cpu_has_a_slot_for_each_core_with_one_thread() -> None:
    slots = plan_slots("auto", None, n_gpus=0)

    assert len(slots) == n_usable_cores()
    assert {slot.n_threads for slot in slots} == {1}
    assert {slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots} == {""}


def test_the_only_worker_has_all_cores_as_threads() -> None:
    (slot,) = plan_slots("cpu", 1, n_gpus=0)

    assert slot.n_threads == n_usable_cores()
    assert slot.environment["OMP_NUM_THREADS"] == str(n_usable_cores())


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("gpu", "expected auto, cpu or a list such as cuda:0,cuda:1, got 'gpu'"),
        ("cuda:2", "cuda:2 is not there; torch sees 2 GPUs here"),
        ("cpu,cuda:0", "cpu and GPUs cannot be mixed"),
    ],
)
def test_a_device_that_is_not_there_is_refused(devices: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_slots(devices, None, n_gpus=2)


def test_a_slot_is_asked_for_its_environment_once_and_before_any_is_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    slots = plan_slots("auto", None, n_gpus=2)
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

import pytest
import torch

from search.process import (
    _probed_network,
    _time_step,
    choose_autocast_dtype,
    prepare_process,
)


def test_a_prepared_process_has_its_threads() -> None:
    n_threads = torch.get_num_threads()

    prepare_process(1)

    assert torch.get_num_threads() == 1
    torch.set_num_threads(n_threads)


@pytest.mark.parametrize(
    ("bf16_seconds", "chosen"), [(0.5, torch.bfloat16), (0.9, torch.bfloat16), (3.0, None)]
)
def test_a_cpu_computes_in_bf16_if_a_step_is_faster_by_it(
    monkeypatch: pytest.MonkeyPatch, bf16_seconds: float, chosen: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    noise = iter([9.0, 9.0, 0.4, 0.1, *[0.0] * 8])  # the first steps and a disturbed one

    found = choose_autocast_dtype(
        torch.device("cpu"),
        time_step=lambda dtype: (1.0 if dtype is None else bf16_seconds) + next(noise),
    )

    assert found == chosen


def test_a_cpu_that_cannot_compute_in_bf16_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)

    assert choose_autocast_dtype(torch.device("cpu"), time_step=lambda _: next(iter(()))) is None


def test_the_probe_times_real_steps_and_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()

    seconds = [_time_step(dtype) for dtype in (None, torch.bfloat16)]

    assert min(seconds) > 0
    assert all(each.grad is not None for each in _probed_network().parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_device_without_known_lower_precision_gets_none() -> None:
    assert choose_autocast_dtype(torch.device("mps")) is None

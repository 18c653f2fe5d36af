import torch

from search.process import choose_autocast_dtype, prepare_process


def test_a_prepared_process_has_its_threads() -> None:
    n_threads = torch.get_num_threads()

    prepare_process(1)

    assert torch.get_num_threads() == 1
    torch.set_num_threads(n_threads)


def test_a_cpu_computes_in_bf16_only_if_it_has_the_instructions() -> None:
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()

    chosen = choose_autocast_dtype(torch.device("cpu"))

    assert chosen == (torch.bfloat16 if has_bf16 else None)


def test_a_device_without_known_lower_precision_gets_none() -> None:
    assert choose_autocast_dtype(torch.device("mps")) is None

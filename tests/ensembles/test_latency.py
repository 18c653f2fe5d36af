import pytest
import torch
from torch import nn

from ensembles.errors import EnsembleError
from ensembles.inputs import ImageInput
from ensembles.latency import Cost, measure_cost

INPUT = ImageInput(size=8, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def make_network(width: int, n_layers: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    layers += [nn.Conv2d(width, width, 3, padding=1) for _ in range(n_layers - 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


def test_parameters_and_bytes_are_counted() -> None:
    cost = measure_cost(make_network(4), INPUT)
    n_parameters = 3 * 4 * 9 + 4 + 4 * 2 + 2
    assert cost.n_parameters == n_parameters
    assert 4 * n_parameters < cost.n_bytes < 4 * n_parameters + 1000


def test_a_much_larger_network_takes_longer_and_so_do_more_images() -> None:
    small, large = measure_cost(make_network(4), INPUT), measure_cost(make_network(128, 8), INPUT)
    assert 0 < small.milliseconds_1 < large.milliseconds_1
    assert large.milliseconds_1 < large.milliseconds_32


def test_threads_and_mode_are_as_before() -> None:
    network = make_network(4).train()
    before = torch.get_num_threads()
    measure_cost(network, INPUT)
    assert torch.get_num_threads() == before
    assert network.training


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"milliseconds_1": 0.0}, "times above 0, got 0.0 and 2.0 ms"),
        ({"milliseconds_32": float("nan")}, "times above 0, got 1.0 and nan ms"),
        ({"n_parameters": -1}, "at least 1 byte, got -1 and 40"),
        ({"n_bytes": 0}, "at least 1 byte, got 10 and 0"),
    ],
)
def test_what_no_measurement_gives_is_refused(changes: dict[str, float], problem: str) -> None:
    values = {"milliseconds_1": 1.0, "milliseconds_32": 2.0, "n_parameters": 10, "n_bytes": 40}

    with pytest.raises(EnsembleError, match=problem):
        Cost(**{**values, **changes})  # type: ignore[arg-type]  # a parameter of the test

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ensembles.averaging import average_weights, reestimate_norms
from spaces.transforms import normalize

MEAN, STD = (0.5,), (0.25,)


def draw_batches(sizes: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(256, (size, 6, 6, 1), dtype=torch.uint8, generator=generator)
        for size in sizes
    ]


def build(dropout: float) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4, momentum=0.3),
            nn.Dropout(dropout),
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4, momentum=0.3),
        )


def test_the_average_is_the_mean_of_each_weight_and_keeps_its_kind() -> None:
    networks = [
        {"weight": torch.tensor([1.0, -2.0]), "count": torch.tensor(3)},
        {"weight": torch.tensor([3.0, 0.0]), "count": torch.tensor(7)},
        {"weight": torch.tensor([5.0, 8.0]), "count": torch.tensor(8)},
    ]

    average = average_weights(networks)

    assert average["weight"].tolist() == [3.0, 2.0]
    assert average["weight"].dtype == torch.float32
    assert average["count"].item() == 3


def test_the_average_of_one_network_is_a_copy_of_it() -> None:
    only = {"weight": torch.tensor([0.1, 0.2])}

    average = average_weights([only])

    assert torch.equal(average["weight"], only["weight"])
    average["weight"].zero_()
    assert only["weight"].tolist() == pytest.approx([0.1, 0.2])


def test_statistics_are_those_of_torchs_own_pass_where_there_is_no_dropout() -> None:
    ours, theirs = build(0.0), build(0.0)
    batches = draw_batches([16, 16, 16])

    reestimate_norms(ours, batches, mean=MEAN, std=STD)
    update_bn([normalize(batch, MEAN, STD) for batch in batches], theirs)

    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    assert not any(module.training for module in ours.modules())
    assert [module.momentum for module in ours if isinstance(module, nn.BatchNorm2d)] == [0.3] * 2


def test_statistics_forget_what_they_were_and_describe_the_network_without_dropout() -> None:
    wild = build(0.9)
    plain = build(0.0)
    with torch.no_grad():
        for module in wild:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(100.0)  # type: ignore[union-attr]

    for network in (wild, plain):
        reestimate_norms(network, draw_batches([32]), mean=MEAN, std=STD)

    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(wild.state_dict()[name], tensor)


def test_a_network_without_batch_norms_is_left_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))
    before = copy.deepcopy(network.state_dict())

    reestimate_norms(network, draw_batches([4]), mean=MEAN, std=STD)

    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    assert not network.training

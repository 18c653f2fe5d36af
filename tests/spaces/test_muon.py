import math

import pytest
import torch
from torch import nn

from spaces.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(16, 27), (64, 32), (8, 8)])
def test_singular_values_become_alike_and_directions_stay(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    values = torch.linspace(1, 5, min(shape))

    found = orthogonalized(left @ values.diag() @ right)

    diagonal = left.T @ found @ right.T
    assert 0.6 < diagonal.diag().min() <= diagonal.diag().max() < 1.3
    torch.testing.assert_close(diagonal, diagonal.diag().diag(), atol=1e-4, rtol=0)


def test_the_length_of_a_gradient_does_not_matter() -> None:
    matrix = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(orthogonalized(1000 * matrix), orthogonalized(matrix))


def test_a_convolution_is_scaled_and_moves_by_its_rate_whatever_the_gradient() -> None:
    weight = nn.Parameter(torch.full((2, 2, 1, 1), 3.0))
    weight.grad = 77 * torch.eye(2).view(2, 2, 1, 1)
    muon = Muon(
        [{"params": [weight], "lr": 0.1, "weight_decay": 9.0, "orthogonal": True}], momentum=0.9
    )

    muon.step()

    # Both singular values of the scaled identity are the square root of a half.
    value = math.sqrt(0.5)
    for _ in range(3):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    # Two filters: length sqrt(2) in all, so each of the four weights is sqrt(2) / 2.
    expected = math.sqrt(0.5) - 0.1 * value * torch.eye(2)
    torch.testing.assert_close(weight.detach().view(2, 2), expected)


def test_other_weights_are_trained_by_sgd() -> None:
    ends = []
    for muon in (True, False):
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.01, "orthogonal": False}]
        built: torch.optim.Optimizer
        if muon:
            built = Muon(groups, momentum=0.8)
        else:
            built = torch.optim.SGD(groups, momentum=0.8, nesterov=True)
        for step in range(4):
            weight.grad = torch.tensor([0.3, 0.1]) * (step - 1)
            built.step()
        ends.append(weight.detach())

    torch.testing.assert_close(*ends)


def test_weights_without_gradients_stay() -> None:
    weight = nn.Parameter(torch.ones(2, 2, 1, 1))

    Muon([{"params": [weight], "lr": 1.0, "orthogonal": True}], momentum=0.8).step()

    assert torch.equal(weight, torch.ones(2, 2, 1, 1))

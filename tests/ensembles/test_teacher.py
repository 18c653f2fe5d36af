import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ensembles.combination import Combination
from ensembles.errors import EnsembleError
from ensembles.teacher import Teacher, combine_tensors, explain_unfitness

COMBINATIONS = {
    "probability": Combination(
        method="greedy", space="probability", weights=(0.25, 0.0, 0.75), temperature=1.3
    ),
    "logarithm": Combination(method="llp", space="logarithm", weights=(0.9, 0.4, 0.0)),
    "stack": Combination(
        method="stack",
        space="stack",
        weights=(0.5, 0.3, 0.2),
        class_weights=((1.0, 0.5, -0.2, 0.1), (0.25, -0.5, 0.3, 0.0), (0.1, 0.2, 0.3, 0.4)),
        class_biases=(0.1, -0.1, 0.3, 0.0),
    ),
}
VOTE = Combination(method="vote", space="vote", weights=(0.5, 0.5))


class Scaled(nn.Module):
    """Says the mean of each of three parts of an image, times a number."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3] * self.scale


class Mute(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError(f"asked about {len(images)} images")


@pytest.mark.parametrize("space", COMBINATIONS)
def test_tensors_are_combined_as_arrays_are(space: str) -> None:
    generator = np.random.default_rng(0)
    # Spread so wide that the floor of logarithms is reached too.
    members = 20 * generator.normal(size=(3, 50, 4)).astype(np.float32)
    combination = COMBINATIONS[space]

    combined = combine_tensors(combination, torch.from_numpy(members))

    np.testing.assert_allclose(combined, combination.combine(members), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(combined.exp().sum(dim=1), np.ones(50), rtol=1e-5)


def test_a_teacher_says_what_its_members_say_together() -> None:
    teacher = Teacher(
        networks=(Scaled(1.0), Scaled(2.0)),
        combination=Combination(method="llp", space="logarithm", weights=(1.0, 0.5)),
    )
    images = torch.tensor([[[[0.0, 1.0, 2.0]]], [[[3.0, 0.0, 0.0]]]])

    said = teacher(images)

    # Once the image itself, and half of twice the image.
    expected = (2 * images.flatten(1)).log_softmax(dim=1)
    torch.testing.assert_close(said, expected)


def test_what_a_teacher_combines_stays_float32_in_low_precision() -> None:
    teacher = Teacher(
        networks=(Scaled(1.0), Scaled(2.0)),
        combination=Combination(method="llp", space="logarithm", weights=(0.7, 0.3)),
    )
    images = torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = teacher(images)

    assert said.dtype == torch.float32
    torch.testing.assert_close(said, teacher(images))


def test_members_without_weight_are_not_asked() -> None:
    teacher = Teacher(
        networks=(Scaled(1.0), Mute()),
        combination=Combination(method="greedy", space="probability", weights=(1.0, 0.0)),
    )

    assert teacher(torch.zeros(2, 3, 1, 1)).shape == (2, 3)


def test_votes_teach_nobody() -> None:
    with pytest.raises(EnsembleError, match="vote cannot teach a student: shares of votes say"):
        Teacher(networks=(Scaled(1.0), Scaled(2.0)), combination=VOTE)

    assert explain_unfitness(COMBINATIONS["stack"]) == ""


def test_a_teacher_needs_a_network_for_each_weight() -> None:
    with pytest.raises(EnsembleError, match="has 3 members, got 1 networks"):
        Teacher(networks=(Scaled(1.0),), combination=COMBINATIONS["logarithm"])

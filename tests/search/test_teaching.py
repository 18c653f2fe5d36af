import math

import pytest
import torch

from search.teaching import Teaching

SAID = torch.tensor([[0.8, 0.2]]).log()


def make(*, temperature: float = 1.0, share: float = 1.0) -> Teaching:
    return Teaching(teacher=lambda _: SAID, temperature=temperature, share=share)


def loss(teaching: Teaching, logits: list[list[float]], hard: float = 5.0) -> float:
    told = teaching.ask(torch.zeros(1, 1, 1, 1)).expand(len(logits), 2)
    return teaching.loss(torch.tensor(hard), torch.tensor(logits), told).item()


def test_the_divergence_of_an_even_student_by_hand() -> None:
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)

    assert loss(make(), [[0.0, 0.0]]) == pytest.approx(expected)


def test_a_temperature_of_two_softens_both_sides_and_counts_four_times() -> None:
    # The roots of 0.8 and 0.2 are as 2 to 1; the student's logits of log 16 become log 4.
    expected = 4 * (2 / 3 * math.log((2 / 3) / 0.8) + 1 / 3 * math.log((1 / 3) / 0.2))

    assert loss(make(temperature=2.0), [[math.log(16), 0.0]]) == pytest.approx(expected)


def test_labels_and_teacher_share_the_loss() -> None:
    soft = loss(make(), [[0.0, 0.0]])

    assert loss(make(share=0.9), [[0.0, 0.0]], hard=5.0) == pytest.approx(0.5 + 0.9 * soft)


def test_the_loss_is_a_mean_over_images() -> None:
    # The first says what the teacher does.
    both = loss(make(), [[math.log(4), 0.0], [0.0, 0.0]])

    assert both == pytest.approx(loss(make(), [[0.0, 0.0]]) / 2, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_that_says_what_its_teacher_does_has_nothing_to_learn(
    temperature: float,
) -> None:
    logits = (SAID + 7.0).requires_grad_()
    teaching = make(temperature=temperature)

    value = teaching.loss(torch.tensor(5.0), logits, SAID)
    value.backward()

    assert value.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == pytest.approx(0, abs=1e-6)

import torch

from spaces.transfer import Feed, send


def test_what_is_there_already_is_not_copied() -> None:
    cpu = torch.device("cpu")
    batch = torch.arange(6).view(2, 3)

    assert send(batch, cpu) is batch
    assert Feed(cpu).send(batch) is batch


def test_what_is_elsewhere_arrives() -> None:
    # `meta` stands for any device: it takes tensors and computes nothing.
    sent = send(torch.zeros(2, 3), torch.device("meta"))

    assert (sent.device.type, sent.shape) == ("meta", (2, 3))

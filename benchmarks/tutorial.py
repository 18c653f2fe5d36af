"""The training loop of tutorials, and how it is run: the other side of the speed benchmarks.

Nothing in it is slow on purpose. It reads files through ImageFolder, varies each image with PIL,
loads batches with two processes, trains in float32 on all cores with Adam at its usual rate, and
looks at the loss after each step, as the tutorials of torch and torchvision do.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
N_LOADERS = 2


@dataclass(frozen=True, kw_only=True)
class TutorialEpoch:
    """How far a tutorial's training is after an epoch; evaluation is not in its times."""

    number: int
    accuracy: float | None
    """On the test images; None where it was not evaluated."""
    wall_seconds: float
    cpu_seconds: float
    """Of the process, and of those that loaded its images."""


def plain_network(n_classes: int) -> nn.Sequential:
    """Return the network of a tutorial: three times convolution, norm, activation, pooling."""
    layers: list[nn.Module] = []
    for n_in, n_out in ((3, 32), (32, 64), (64, 128)):
        layers += [
            nn.Conv2d(n_in, n_out, 3, padding=1),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, n_classes))


def train_tutorial(
    network: nn.Module,
    folder: Path,
    *,
    n_epochs: int,
    batch_size: int,
    evaluate_every: int,
    on_epoch: Callable[[TutorialEpoch], None],
) -> None:
    """Train as a tutorial does.

    Args:
        network: In float32, as torch made it.
        folder: Images as `train/CLASS/*` and `test/CLASS/*`.
        n_epochs: Passes over the training images.
        batch_size: Images of one step.
        evaluate_every: Epochs from one evaluation to the next.
        on_epoch: Told of each epoch.
    """
    plain = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    varied = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *plain]
    train_set = ImageFolder(folder / "train", transforms.Compose(varied))
    test_set = ImageFolder(folder / "test", transforms.Compose(plain))
    train_loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        train_set, batch_size=batch_size, shuffle=True, num_workers=N_LOADERS
    )
    test_loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        test_set, batch_size=batch_size, num_workers=N_LOADERS
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    wall, cpu = 0.0, 0.0
    for number in range(1, n_epochs + 1):
        began = time.perf_counter(), cpu_seconds()
        network.train()
        running_loss = 0.0
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(network(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        wall += time.perf_counter() - began[0]
        cpu += cpu_seconds() - began[1]
        accuracy = _accuracy(network, test_loader) if number % evaluate_every == 0 else None
        on_epoch(
            TutorialEpoch(number=number, accuracy=accuracy, wall_seconds=wall, cpu_seconds=cpu)
        )


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@torch.no_grad()
def _accuracy(network: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> float:
    network.eval()
    n_right, n_images = 0, 0
    for images, labels in loader:
        n_right += int((network(images).argmax(dim=1) == labels).sum().item())
        n_images += len(labels)
    return n_right / n_images

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, Finished, Shell

from ensembles.combination import Combination
from ensembles.export import BundleContents, write_bundle
from ensembles.inputs import ImageInput
from ensembles.latency import Cost
from ensembles.manifest import Figures, Provenance, ReportRecord
from ensembles.members import Member
from spaces.architecture import Architecture, Stage
from spaces.networks.builders import build_network
from spaces.task import Task

WriteBundle = Callable[..., Path]


@pytest.fixture
def write_tiny_bundle(tmp_path: Path) -> WriteBundle:
    """Return a function that writes a bundle of small networks with random weights."""

    def make_member(trial: int, channels: int, n_classes: int, cost: Cost | None) -> Member:
        architecture = Architecture(
            family="residual" if trial % 2 else "plain",
            stem="convolution",
            stem_width=4,
            stages=(Stage(width=4 + trial, kernel_size=3, n_convolutions=2),),
            pooling="max",
            norm="batch",
            activation="gelu",
            head="max",
            dropout=0.0,
            initialization="he",
            logit_scale=1.0,
        )
        task = Task(image_size=8, channels=channels, n_classes=n_classes)
        with torch.random.fork_rng():
            torch.manual_seed(trial)
            network = build_network(architecture, task)
        return Member(
            name=str(trial), architecture=architecture, weights=network.state_dict(), cost=cost
        )

    def write(
        name: str = "model",
        *,
        classes: tuple[str, ...] = ("cat", "dog", "owl"),
        channels: int = 3,
        weights: tuple[float, ...] = (0.25, 0.75),
        costs: tuple[Cost | None, ...] | None = None,
        overwrite: bool = False,
        **extras: Any,
    ) -> Path:
        n_members = len(weights)
        contents = BundleContents(
            members=[
                make_member(trial, channels, len(classes), cost)
                for trial, cost in enumerate(costs or (None,) * n_members)
            ],
            combination=Combination(method="greedy", space="probability", weights=weights),
            classes=classes,
            image_input=ImageInput(
                size=8, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels
            ),
            provenance=Provenance(
                study="tiny", dataset="drawn", dataset_fingerprint="0" * 8, n_images={"train": 70}
            ),
            report=ReportRecord(
                role="test",
                n_images=100,
                figures=(
                    Figures(
                        name="greedy",
                        n_members=n_members,
                        accuracy=0.875,
                        accuracy_interval=(0.8, 0.93),
                        log_loss=0.5,
                        expected_calibration_error=0.02,
                    ),
                ),
                verdict="Not distinguishable from the single model.",
            ),
            **extras,
        )
        folder = tmp_path / name
        write_bundle(folder, contents, overwrite=overwrite)
        return folder

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a study of six digits trials, run as a user does; it takes some ten seconds."""
    shell = Shell(folder=tmp_path_factory.mktemp("finished"))
    ran = shell.run("run", "--name", "whole", "--trials", "6", "--workers", "2", *TINY)
    return Finished(shell=shell, ran=ran)

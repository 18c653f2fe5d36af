"""How long each part of a trial takes, measured from outside: the code holds no stopwatch."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import optuna
import torch

import search.checkpoints
import search.objective
import search.rounds
import search.training
from spaces.optimization import WeightAverage, build_optimizer

PARTS = (
    "forward and backward",
    "optimizer",
    "augment",
    "start of the network",
    "evaluate rounds",
    "predict at the end",
    "study",
    "checkpoints",
    "files",
    "dashboard's pictures",
    "rest",
)
"""What a trial consists of, in the order of the tables."""
OVERHEAD = ("study", "checkpoints", "files", "dashboard's pictures", "rest")
"""The parts that are neither training nor judging."""


class Stopwatch:
    """Time of this thread by part; what a part calls that is a part itself counts there alone."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.process_time(), time.perf_counter()

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        """Count the time of a block to a part."""
        self._settle()
        self._open.append(part)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time counts to a part."""

        def call(*positional: object, **named: object) -> object:
            with self.running(part):
                return function(*positional, **named)

        return call

    def _settle(self) -> None:
        """Count the time since the last change to the part that was running."""
        now = time.process_time(), time.perf_counter()
        if self._open:
            self.cpu[self._open[-1]] += now[0] - self._since[0]
            self.wall[self._open[-1]] += now[1] - self._since[1]
        self._since = now


@contextmanager
def watched_trials(watch: Stopwatch, *, checkpoints: bool = False) -> Iterator[None]:
    """Time the parts of the trials that this process runs meanwhile.

    Args:
        watch: Where they are counted. What no part claims is what the caller counts it as.
        checkpoints: Write one after each round, not only every few seconds.
    """

    def build_watched(*positional: Any) -> torch.optim.Optimizer:
        built = build_optimizer(*positional)
        built.step = watch.timed("optimizer", built.step)  # type: ignore[method-assign]
        return built

    training = search.training._Training
    owners: list[tuple[object, str, str]] = [
        (training, "__init__", "start of the network"),
        (training, "run_to", "forward and backward"),
        (training, "_next_batch", "augment"),
        (training, "state", "checkpoints"),
        (WeightAverage, "update", "optimizer"),
        (search.rounds, "_judge", "evaluate rounds"),
        (search.objective, "_keep", "predict at the end"),
        (search.checkpoints, "save_checkpoint", "checkpoints"),
        (search.rounds, "load_checkpoint", "checkpoints"),
        (search.objective, "write_network", "files"),
        (search.objective, "write_history", "files"),
        (search.objective, "exhibit_trial", "dashboard's pictures"),
        (search.objective, "suggest_recipe", "study"),
        (optuna.Trial, "report", "study"),
        (optuna.Trial, "should_prune", "study"),
        (optuna.Trial, "set_user_attr", "study"),
    ]
    with mock.patch.object(search.training, "build_optimizer", build_watched):
        patches: list[Any] = [
            mock.patch.object(owner, name, watch.timed(part, getattr(owner, name)))
            for owner, name, part in owners
        ]
        if checkpoints:
            patches.append(
                mock.patch.multiple(
                    search.checkpoints, MIN_SECONDS_BETWEEN=-1.0, MAX_SHARE_OF_TIME=math.inf
                )
            )
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from runs import make_tiny_study
from torch import Tensor, nn

from search import memory, training, workplace
from search.checkpoints import load_checkpoint
from search.config import Sampler
from search.devices import Slot
from search.loop import run_trials
from search.memory import (
    DoesNotFitError,
    Portions,
    is_out_of_memory,
    mark_infeasible,
    n_parts_at_first,
)
from search.panel import Panel
from search.samplers import make_sampler
from search.study import Study
from search.workplace import Workplace, open_workplace
from spaces.architecture import Architecture
from spaces.known import known_parameters
from spaces.networks.builders import build_network
from spaces.space import SPACES, suggest_recipe
from spaces.task import Task

HERE = Slot(number=0, device="cpu", n_threads=1)
# Nothing in it makes a batch in parts another step than a whole one.
WITHOUT_BATCH_NORM = {"width": 8, "depth": 2, "norms": "group", "dropout": 0, "batch_sizes": 64}


def ask_too_much() -> object:
    return torch.empty(1 << 50, dtype=torch.uint8)


def ask_far_too_much() -> object:
    return bytearray(1 << 60)


@pytest.mark.parametrize("ask", [ask_too_much, ask_far_too_much])
def test_what_the_allocators_raise_is_known(ask: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()

    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_are_told_apart(error: Exception, *, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_batch_is_halved_until_it_would_be_too_small() -> None:
    room, sizes = Portions(), []

    for _ in range(3):
        room.shrink(36, "too large")
        sizes.append(room.micro_batch(36))

    # Of 36 images, in 2, 4 and 8 parts; 16 parts would have fewer than 4.
    assert sizes == [18, 9, 5]
    with pytest.raises(DoesNotFitError, match="even 5 images at a time do not fit: too large"):
        room.shrink(36, "too large")


class Hungry(nn.Module):
    """Asks for more memory than there is where it gets more images than a limit."""

    def __init__(self, network: nn.Module, limit: int) -> None:
        super().__init__()
        self.network, self.limit = network, limit

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.limit:
            ask_too_much()
        logits: Tensor = self.network(images)
        return logits


def test_predictions_that_do_not_fit_are_made_in_smaller_batches(unstarted: Study) -> None:
    place = open_workplace(unstarted.paths, unstarted.record, HERE, lambda: False, Panel())
    space, task = unstarted.record.space, unstarted.record.task
    recipe = suggest_recipe(FixedTrial(known_parameters(space, task)[0]), space, task)
    network = build_network(recipe.architecture, task)
    rows = place.rows["stop"]

    expected = place.predict(network, rows, dtype=None)
    predicted = place.predict(Hungry(network, limit=70), rows, dtype=None)

    np.testing.assert_allclose(predicted, expected, atol=1e-5)
    # Of the usual 500, halved until they are at most 70.
    assert place.portions.n_predicted == 62
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        place.predict(Hungry(network, limit=0), rows, dtype=None)


def test_predictions_never_gather_more_images_than_a_few_batches(
    unstarted: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_workplace(unstarted.paths, unstarted.record, HERE, lambda: False, Panel())
    space, task = unstarted.record.space, unstarted.record.task
    recipe = suggest_recipe(FixedTrial(known_parameters(space, task)[0]), space, task)
    gathered: list[int] = []
    pixels = Workplace.pixels

    def look(self: Workplace, rows: Tensor) -> Tensor:
        gathered.append(len(rows))
        return pixels(self, rows)

    monkeypatch.setattr(Workplace, "pixels", look)
    monkeypatch.setattr(workplace, "images_at_once", lambda _: 3)
    place.predict(build_network(recipe.architecture, task), torch.arange(40), dtype=None)
    place.portions.n_predicted = 500  # of a checkpoint that was written where there is more room
    place.predict(build_network(recipe.architecture, task), torch.arange(40), dtype=None)

    assert gathered == [12, 12, 12, 4] * 2


@dataclass
class Limit:
    """Makes every network ask for more memory than there is where it gets too many images."""

    n_images: int
    but_not_before: int = 0
    """Forward passes of trainings that fit whatever they get."""
    n_passes: int = 0

    def build(self, architecture: Architecture, task: Task) -> nn.Module:
        network = build_network(architecture, task)
        network.register_forward_pre_hook(self._check)
        return network

    def _check(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.n_passes += network.training
        if len(inputs[0]) > self.n_images and self.n_passes > self.but_not_before:
            ask_too_much()


def run_within(
    limit: Limit | None,
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> list[FrozenTrial]:
    with monkeypatch.context() as patch:
        if limit:
            patch.setattr(training, "build_network", limit.build)
        n_trials = study.record.config.trials
        run_trials(study.paths, HERE, stopping, n_trials=n_trials, deadline=None)
    return study.trials()[:n_trials]


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_trained_on_in_parts_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, tight = (
        make_tiny_study(tmp_path / name, trials=2, vary=WITHOUT_BATCH_NORM) for name in "ab"
    )

    expected = run_within(None, free, monkeypatch)
    trials = run_within(Limit(n_images=20), tight, monkeypatch)

    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert [trial.user_attrs.get("micro_batch") for trial in expected] == [None] * 2
    assert [trial.user_attrs["micro_batch"] for trial in trials] == [16] * 2  # 64 in four parts
    for one, two in zip(trials, expected, strict=True):
        assert one.params == two.params
        assert one.value == pytest.approx(two.value, abs=1e-3)
        assert one.constraints == {}


@pytest.mark.parametrize(
    ("n_images", "size", "device", "expected"),
    [
        (1024, 64, "cpu", 1),
        (1025, 64, "cpu", 2),
        (256, 224, "cpu", 4),  # of 64; 83 at once are the most
        (256, 224, "cuda", 1),
        (9, 4000, "cpu", 2),  # of 5 and 4; batch norm needs a few
        (3, 4000, "cpu", 1),
    ],
)
def test_a_cpu_trains_on_large_images_in_parts(
    n_images: int, size: int, device: str, expected: int
) -> None:
    assert n_parts_at_first(n_images, size, torch.device(device)) == expected


def test_a_trial_begins_with_parts_where_its_images_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PIXELS_AT_ONCE", 40 * 8 * 8)
    study = make_tiny_study(tmp_path, trials=1, vary=WITHOUT_BATCH_NORM)

    (trial,) = run_within(None, study, monkeypatch)

    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["micro_batch"] == 32


@pytest.mark.slow
@pytest.mark.usefixtures("saved_after_every_round")
def test_a_training_that_fits_no_more_goes_back_and_reports_each_round_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_tiny_study(tmp_path, trials=1, epochs=6, vary=WITHOUT_BATCH_NORM)
    per_epoch = 200 // 64

    (trial,) = run_within(Limit(n_images=40, but_not_before=3 * per_epoch), study, monkeypatch)

    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["micro_batch"] == 32
    assert sorted(trial.intermediate_values) == [*range(1, 7)]
    history = json.loads(study.paths.trial(0).history.read_text(encoding="utf-8"))
    assert [scores["round"] for scores in history] == [*range(1, 7)]


@pytest.mark.slow
@pytest.mark.usefixtures("saved_after_every_round")
def test_a_trial_that_goes_on_where_there_is_less_room_trains_in_more_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_tiny_study(tmp_path, trials=1, epochs=5, vary=WITHOUT_BATCH_NORM)
    asked = iter([False] * 9 + [True] * 9)

    run_within(None, study, monkeypatch, stopping=lambda: next(asked))
    saved = load_checkpoint(study.paths.trial(0), torch.device("cpu"))
    monkeypatch.setattr(memory, "PIXELS_AT_ONCE", 40 * 8 * 8)
    (trial,) = run_within(None, study, monkeypatch)

    assert saved is not None
    assert saved.n_parts == 1
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["micro_batch"] == 32


@pytest.mark.slow
@pytest.mark.usefixtures("saved_after_every_round")
def test_an_interrupted_trial_in_parts_equals_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"trials": 1, "epochs": 5, "vary": {"batch_sizes": 64}}
    broken, unbroken = (make_tiny_study(tmp_path / name, **settings) for name in "ab")
    asked = iter([False] * 9 + [True] * 9)

    run_within(Limit(n_images=20), broken, monkeypatch, stopping=lambda: next(asked))
    states = [trial.state for trial in broken.trials()]
    (trial,) = run_within(Limit(n_images=20), broken, monkeypatch)
    (expected,) = run_within(Limit(n_images=20), unbroken, monkeypatch)

    assert TrialState.WAITING in states
    assert trial.user_attrs["micro_batch"] == 16
    assert trial.value == expected.value
    assert trial.intermediate_values == expected.intermediate_values


@pytest.mark.slow
def test_what_never_fits_is_infeasible_counted_once_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_tiny_study(tmp_path, trials=2, vary={"batch_sizes": 64})

    trials = run_within(Limit(n_images=2), study, monkeypatch)

    assert study.counts().finished == 2
    assert study.counts().failed == 0
    for trial in trials:
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["ending"].startswith(
            "out of memory: even 4 images at a time do not fit: RuntimeError: "
        )
        assert trial.constraints["memory"] > 0
        assert trial.system_attrs["constraints"] == [1.0]  # which the dashboard reads
        assert trial.intermediate_values == {}


def search_on_a_line(sampler: Sampler, *, n_trials: int) -> list[float]:
    """Search where the upper half of x does not fit and y alone counts; return the x's tried."""
    task = Task(image_size=8, channels=1, n_classes=10)
    study = optuna.create_study(
        sampler=make_sampler(sampler, seed=3, space=SPACES["small"], task=task)
    )
    for _ in range(n_trials):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_float("y", 0, 1)
        if x > 0.5:
            mark_infeasible(trial)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, y)
    return [trial.params["x"] for trial in study.trials]


def test_the_sampler_learns_what_does_not_fit() -> None:
    tried = search_on_a_line("tpe", n_trials=60)

    assert sum(x > 0.5 for x in tried[:10]) >= 3
    assert sum(x > 0.5 for x in tried[-30:]) <= 8


@pytest.mark.parametrize("sampler", ["random", "gp", "cmaes", "nsga2"])
def test_other_samplers_go_on_where_trials_do_not_fit(sampler: Sampler) -> None:
    assert len(search_on_a_line(sampler, n_trials=14)) == 14

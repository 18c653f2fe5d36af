import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import make_tiny_study
from torch import Tensor

from search.candidates import list_candidates
from search.devices import Slot
from search.loop import run_trials
from search.paths import TrialPaths
from search.predictions import gather_predictions, read_weights
from search.schedule import Deadline
from search.seeding import derive_seed
from search.snapshots import Weights, copy_weights, differing, most_networks, snapshot_rounds
from search.study import Study
from search.training import Round, n_steps_per_epoch, train
from search.workplace import Workplace, open_workplace
from spaces.networks.builders import build_network
from spaces.recipe import Recipe, recipe_from_json

ONE_THREAD = Slot(number=0, device="cpu", n_threads=1)


def run_one_trial(studies: Path, averaging: str) -> Study:
    # Over few steps the average is all but the last network, so batches are small.
    vary = {"width": 8, "depth": 2, "averagings": averaging, "batch_sizes": 64}
    study = make_tiny_study(studies, trials=1, epochs=6, vary=vary, snapshots=2, pruner="none")
    run_trials(study.paths, ONE_THREAD, lambda: False, n_trials=1, deadline=None)
    return study


def train_again(recipe: Recipe, place: Workplace) -> Iterator[Round]:
    """Repeat the training of trial 0 of a study, six epochs of it."""
    n_images = len(place.images.rows)
    yield from train(
        recipe,
        place.record.task,
        place.images,
        n_steps=6 * n_steps_per_epoch(n_images, recipe.optimizer.batch_size),
        n_rounds=6,
        seed=derive_seed(place.record.config.seed, "trial", 0),
        autocast_dtype=place.autocast_dtype,
    )


def assert_same_weights(files: TrialPaths, weights: Weights) -> None:
    stored = read_weights(files)
    assert stored.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(stored[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("n_rounds", "n_snapshots", "rounds"),
    [(24, 3, {16, 20, 24}), (10, 1, {10}), (10, 4, {7, 8, 9, 10}), (2, 3, {2}), (24, 0, set())],
)
def test_snapshots_lie_evenly_in_the_second_half(
    n_rounds: int, n_snapshots: int, rounds: set[int]
) -> None:
    assert snapshot_rounds(n_rounds, n_snapshots) == rounds


def test_what_equals_the_best_round_is_left_out() -> None:
    best: dict[str, Tensor] = {"weight": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)}
    other = {**best, "count": torch.tensor(4)}

    assert differing({"8": best, "raw": dict(best), "4": other}, best) == {"4": other}


@pytest.mark.slow
def test_a_trial_leaves_the_weights_that_its_training_had(tmp_path: Path) -> None:
    study = run_one_trial(tmp_path, "ema")
    [trial] = [trial for trial in study.trials() if trial.state.is_finished()]
    files, best_round = study.paths.trial(0), trial.user_attrs["best_round"]
    recipe = recipe_from_json(trial.user_attrs["recipe"])
    place = open_workplace(study.paths, study.record, ONE_THREAD, lambda: False)

    names = {each.name for each in list_candidates(study)}

    assert most_networks(recipe, 2) == 4
    assert names == {"0", "0@raw"} | {f"0@{number}" for number in {5, 6} - {best_round}}
    for finished in train_again(recipe, place):
        if finished.number == best_round:
            assert finished.unaveraged is not None
            assert_same_weights(files, copy_weights(finished.network))
            assert_same_weights(files.snapshot("raw"), copy_weights(finished.unaveraged))
        elif finished.number in (5, 6):
            assert_same_weights(
                files.snapshot(str(finished.number)), copy_weights(finished.network)
            )


@pytest.mark.slow
def test_snapshots_predict_what_is_stored(tmp_path: Path) -> None:
    study = run_one_trial(tmp_path, "none")
    place = open_workplace(study.paths, study.record, ONE_THREAD, lambda: False)

    candidates = list_candidates(study)

    assert len(candidates) >= 2
    assert all(not each.name.endswith("@raw") for each in candidates)
    for each in candidates:
        network = build_network(each.recipe.architecture, study.record.task)
        network.load_state_dict(read_weights(each.files))
        for role, rows in place.rows.items():
            [stored] = gather_predictions([each.files], role)
            predicted = place.predict(network, rows, dtype=None)
            np.testing.assert_allclose(stored, predicted, atol=1e-5)


@pytest.mark.slow
def test_a_trial_that_runs_out_of_time_spends_none_on_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three steps a round, six rounds: asked once before the trial and before each step, the time
    # is over in the last round, after the snapshots of rounds 4 and 5.
    n_asked = itertools.count()
    monkeypatch.setattr(Deadline, "left", lambda _: 60.0 if next(n_asked) < 17 else 0.0)
    vary = {"width": 8, "depth": 2, "batch_sizes": 64}
    study = make_tiny_study(tmp_path, trials=1, epochs=6, vary=vary, snapshots=3, pruner="none")
    deadline = Deadline(at=0.0, n_trials=1, n_workers=1)

    run_trials(study.paths, ONE_THREAD, lambda: False, n_trials=1, deadline=deadline)

    [trial] = [trial for trial in study.trials() if trial.state.is_finished()]
    assert trial.user_attrs["ending"] == "out of time"
    assert len(trial.intermediate_values) == 5
    assert study.paths.trial(0).weights.is_file()
    assert not study.paths.trial(0).snapshots.exists()

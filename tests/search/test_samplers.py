from typing import Any, get_args

import optuna
import pytest

from search.config import Pruner, Sampler, StudyConfig
from search.errors import ConfigError
from search.preparation import bounded_by_grid
from search.rungs import place_rungs
from search.samplers import grid_of, make_pruner, make_sampler
from spaces.space import SPACES, Space, suggest_recipe
from spaces.task import Task

TASK = Task(image_size=8, channels=1, n_classes=10)


def _small_space() -> Space:
    """Nothing varies but the kernels, the rate and the flips."""
    return Space(
        families=("plain",), stems=("convolution",), depth=(2, 2), width=(8, 8),
        growth=(1.0, 1.0), kernel_sizes=(3, 5), n_convolutions=(1, 1), poolings=("max",),
        norms=("batch",), activations=("relu",), heads=("max",), dropout=(0.0, 0.0),
        initializations=("he",), logit_scales=(1.0,), optimizers=("sgd",), momentum=(0.9, 0.9),
        weight_decay_factor=(1.0, 1.0), norm_bias_factors=(1.0,), schedules=("linear",),
        warmup=(0.2, 0.2), batch_sizes=(64,), label_smoothing=(0.0, 0.0), averagings=("none",),
        flips=("none", "random"), crop=(0.0, 0.0), rotation=(0.0, 0.0), scale=(0.0, 0.0),
        shear=(0.0, 0.0), jitter=(0.0, 0.0), erasing=(0.0, 0.0), policies=("none",),
        mixings=("none",),
    )  # fmt: skip


def _run(sampler: Sampler, n_trials: int, seed: int = 0) -> list[dict[str, object]]:
    space = _small_space()
    study = optuna.create_study(sampler=make_sampler(sampler, seed=seed, space=space, task=TASK))
    for _ in range(n_trials):
        trial = study.ask()
        recipe = suggest_recipe(trial, space, TASK)
        study.tell(trial, recipe.optimizer.learning_rate)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", get_args(Sampler))
def test_every_sampler_gives_the_same_trials_for_a_seed(name: Sampler) -> None:
    assert _run(name, 12) == _run(name, 12)


def test_another_seed_gives_other_trials() -> None:
    assert _run("tpe", 3, seed=0) != _run("tpe", 3, seed=1)


def test_workers_that_share_a_seed_do_not_sample_the_same_trials() -> None:
    space = _small_space()
    study = optuna.create_study(sampler=make_sampler("random", seed=0, space=space, task=TASK))
    another = optuna.load_study(
        study_name=study.study_name,
        storage=study._storage,
        sampler=make_sampler("random", seed=0, space=space, task=TASK),
    )

    for worker in (study, another):
        suggest_recipe(worker.ask(), space, TASK)

    assert study.trials[0].params != study.trials[1].params


def test_an_interrupted_study_samples_as_an_unbroken_one() -> None:
    space = _small_space()
    unbroken = _run("tpe", 14)
    study = optuna.create_study(sampler=make_sampler("tpe", seed=0, space=space, task=TASK))
    for part in (8, 6):
        study.sampler = make_sampler("tpe", seed=0, space=space, task=TASK)
        for _ in range(part):
            trial = study.ask()
            study.tell(trial, suggest_recipe(trial, space, TASK).optimizer.learning_rate)

    assert [trial.params for trial in study.trials] == unbroken


@pytest.mark.parametrize("name", ["tpe", "cmaes", "nsga2"])
def test_what_is_known_of_finished_trials_is_handed_on_and_changes_no_trial(name: Sampler) -> None:
    space, task = SPACES["digits"], Task(image_size=8, channels=1, n_classes=10)
    seen: dict[bool, list[Any]] = {True: [], False: []}
    params = {}
    for handed_on in (True, False):
        study = optuna.create_study(sampler=make_sampler(name, seed=0, space=space, task=task))
        for _ in range(14):
            if not handed_on:
                study.sampler = make_sampler(name, seed=0, space=space, task=task)
            sampler: Any = study.sampler
            trial = study.ask()
            seen[handed_on].append(sampler._sampler._search_space)
            study.tell(trial, suggest_recipe(trial, space, task).optimizer.learning_rate)
        params[handed_on] = [trial.params for trial in study.trials]

    assert params[True] == params[False]
    assert all(known is seen[True][0] for known in seen[True])
    assert seen[True][0]._cached_trial_number > 10


def test_a_grid_visits_every_point_once() -> None:
    n_points = 2 * 2 * 3 * 2  # two kernels in two stages, three rates, two flips

    visited = _run("grid", n_points)

    assert len({tuple(sorted(point.items())) for point in visited}) == n_points


def test_a_grid_that_is_too_large_says_what_to_narrow() -> None:
    with pytest.raises(ConfigError, match=r"a grid over this space has .* narrow it with --vary"):
        grid_of(SPACES["default"], Task(image_size=32, channels=3, n_classes=10))


@pytest.mark.parametrize("name", get_args(Pruner))
def test_every_pruner_but_none_ends_a_hopeless_trial(name: Pruner) -> None:
    rungs = place_rungs(8, n_rungs=2, eta=2)
    study = optuna.create_study(pruner=make_pruner(name, n_rounds=8, rungs=rungs))

    pruned = 0
    for number in range(40):
        trial = study.ask()
        for step in range(1, 9):
            trial.report(float(number), step)  # each trial is worse than all before it
            if trial.should_prune():
                pruned += 1
                break
        study.tell(trial, float(number))

    assert (pruned > 0) == (name != "none")


@pytest.mark.parametrize("n_rounds", [1, 2, 3, 10])
@pytest.mark.parametrize("name", get_args(Pruner))
def test_pruners_take_any_number_of_rounds(name: Pruner, n_rounds: int) -> None:
    rungs = place_rungs(n_rounds, n_rungs=2, eta=2)
    study = optuna.create_study(pruner=make_pruner(name, n_rounds=n_rounds, rungs=rungs))

    trial = study.ask()
    trial.report(1.0, n_rounds)

    assert not trial.should_prune()


def test_the_median_pruner_spares_the_first_half_of_a_schedule() -> None:
    study = optuna.create_study(pruner=make_pruner("median", n_rounds=10))
    for _ in range(12):
        trial = study.ask()
        for step in range(1, 11):
            trial.report(0.0, step)
        study.tell(trial, 0.0)

    hopeless = study.ask()
    for step in range(1, 5):
        hopeless.report(99.0, step)
        assert not hopeless.should_prune()
    hopeless.report(99.0, 6)

    assert hopeless.should_prune()


def test_of_three_rounds_the_first_is_spared() -> None:
    study = optuna.create_study(pruner=make_pruner("median", n_rounds=3))
    for _ in range(12):
        trial = study.ask()
        for step in (1, 2, 3):
            trial.report(0.0, step)
        study.tell(trial, 0.0)

    hopeless = study.ask()
    hopeless.report(99.0, 1)
    assert not hopeless.should_prune()
    hopeless.report(99.0, 2)

    assert hopeless.should_prune()


def test_a_grid_bounds_the_number_of_trials() -> None:
    config = StudyConfig(sampler="grid", trials=100)

    assert bounded_by_grid(config, _small_space(), TASK).trials == 24
    assert bounded_by_grid(config.replaced(trials=5), _small_space(), TASK).trials == 5
    assert bounded_by_grid(StudyConfig(trials=100), _small_space(), TASK).trials == 100

from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.paths import StudyPaths
from search.retention import free_weights, kept_trials


def _trial(
    number: int, log_loss: float, family: str = "plain", *, pruned: bool = False
) -> FrozenTrial:
    trial = optuna.trial.create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=log_loss,
        user_attrs={"log_loss": log_loss, "recipe": {"architecture": {"family": family}}},
    )
    trial.number = number
    return trial


def test_the_best_are_kept_pruned_or_not() -> None:
    trials = [_trial(0, 0.9), _trial(1, 0.1, pruned=True), _trial(2, 0.5), *(
        _trial(number, 2.0) for number in range(3, 9)
    )]  # fmt: skip

    assert [trial.number for trial in kept_trials(trials, 4)] == [1, 2, 0, 3]


def test_three_of_each_family_stay_besides() -> None:
    trials = [_trial(number, 0.1 * number) for number in range(5)]
    trials += [_trial(number, float(number), "residual") for number in range(5, 10)]

    assert [trial.number for trial in kept_trials(trials, 4)] == [0, 1, 2, 3, 5, 6, 7]


def test_only_weights_that_are_not_kept_are_deleted(tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path)
    trials = [_trial(number, float(number)) for number in range(5)]
    for trial in trials:
        paths.trial(trial.number).folder.mkdir(parents=True)
        paths.trial(trial.number).weights.touch()
        paths.trial(trial.number).predictions("ens").touch()
        paths.trial(trial.number).snapshot("8").folder.mkdir(parents=True)
        paths.trial(trial.number).snapshot("8").weights.touch()
        paths.soup(f"soup-{trial.number}").folder.mkdir(parents=True)

    free_weights(paths, trials, keep=4, metric="log_loss")

    assert [paths.trial(number).weights.exists() for number in range(5)] == [True] * 4 + [False]
    assert [paths.trial(number).snapshots.exists() for number in range(5)] == [True] * 4 + [False]
    soups = [f"soup-{number}" for number in range(4)]
    assert sorted(path.name for path in tmp_path.glob("soups/*")) == soups
    assert all(paths.trial(number).predictions("ens").exists() for number in range(5))


@pytest.mark.parametrize("members", ['"members": ["5@8", "0"]', '"trial_numbers": [5, 0]'])
def test_the_members_of_an_ensemble_stay_exportable(members: str, tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path)
    trials = [_trial(number, float(number)) for number in range(6)]
    for trial in trials:
        paths.trial(trial.number).folder.mkdir(parents=True)
        paths.trial(trial.number).weights.touch()
    paths.ensemble.write_text(f'{{"selections": {{"llp": {{{members}}}}}}}')

    free_weights(paths, trials, keep=1, metric="log_loss")

    kept = [number for number in range(6) if paths.trial(number).weights.exists()]
    assert kept == [0, 1, 2, 5]


def test_the_leader_by_the_metric_is_kept() -> None:
    trials = [_trial(number, float(number)) for number in range(6)]
    for trial in trials:
        trial.value = trial.number / 10  # an accuracy: the last one leads

    kept = kept_trials(trials, 1, "accuracy")

    assert [trial.number for trial in kept] == [0, 5, 1, 2]

import os
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from runs import make_tiny_study

from search.errors import NothingToDoError, StorageError
from search.storage import open_study
from search.study import Study, list_studies, load_study
from search.trials import count_trials, ranked, seconds_left, trial_row


def make_trial(
    value: float | None, state: TrialState = TrialState.COMPLETE, **attributes: object
) -> FrozenTrial:
    return create_trial(
        state=state,
        value=value,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        user_attrs=attributes,
        intermediate_values={1: 2.0, 2: 1.5},
    )


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Return a study with trials that were never trained."""
    study = make_tiny_study(tmp_path, name="made", trials=5)
    storage = open_study(study.paths)
    for value, accuracy in ((0.7, 0.8), (0.4, 0.9), (0.4, 0.85)):
        storage.add_trial(make_trial(value, log_loss=value, accuracy=accuracy, seconds=2.0))
    storage.add_trial(make_trial(None, TrialState.PRUNED, log_loss=0.9, ending="pruned after"))
    storage.add_trial(make_trial(None, TrialState.FAIL, failure="ValueError: no"))
    return study


def test_leaders_are_the_complete_trials_and_the_earlier_of_two_equals_comes_first(
    study: Study,
) -> None:
    first = len(study.trials()) - 5

    assert [trial.number for trial in study.leaders()] == [first + 1, first + 2, first]


def test_counts_tell_the_states_apart(study: Study) -> None:
    counts = study.counts()

    assert (counts.complete, counts.pruned, counts.failed, counts.running) == (3, 1, 1, 0)
    assert counts.finished == 4
    assert counts == count_trials(study.trials())


def test_where_the_metric_rises_the_largest_is_best() -> None:
    trials = [make_trial(value) for value in (0.2, 0.9, 0.5)]

    assert [trial.value for trial in ranked(trials, rises=True)] == [0.9, 0.5, 0.2]
    assert [trial.value for trial in ranked(trials, rises=False)] == [0.2, 0.5, 0.9]


def test_a_row_tells_why_a_trial_ended() -> None:
    pruned = trial_row(make_trial(None, TrialState.PRUNED, ending="pruned after round 2"))
    failed = trial_row(make_trial(None, TrialState.FAIL, failure="ValueError: no"))
    complete = trial_row(make_trial(0.4, parameters=1234, slot=1))

    assert (pruned.state, pruned.ending, pruned.rounds) == ("pruned", "pruned after round 2", 2)
    assert (failed.state, failed.ending) == ("fail", "ValueError: no")
    assert (complete.ending, complete.parameters, complete.slot) == ("", 1234, 1)
    assert complete.params == {"x": 0.5}


def test_time_left_follows_the_pace_of_this_run() -> None:
    trials = [make_trial(0.1)] * 6

    assert seconds_left(trials, 10, seconds=30.0, done_before=3) == 40.0  # 10 s for each of 4
    assert seconds_left(trials, 6, seconds=30.0, done_before=3) == 0.0
    assert seconds_left(trials, 10, seconds=30.0, done_before=6) is None


def test_the_newest_study_is_the_one_worked_on_last(tmp_path: Path) -> None:
    for age, name in ((30, "old"), (10, "young"), (20, "middle")):
        made = make_tiny_study(tmp_path, name=name)
        time = made.paths.database.stat().st_mtime - age
        for file in made.paths.folder.glob("study.db*"):
            os.utime(file, (time, time))

    assert [paths.name for paths in list_studies(tmp_path)] == ["young", "middle", "old"]
    assert load_study(studies=tmp_path).name == "young"
    assert load_study("old", studies=tmp_path).record.config.name == "old"


def test_a_study_has_what_it_was_told(study: Study) -> None:
    loaded = load_study("made", studies=study.paths.folder.parent)

    assert loaded.record == study.record
    assert loaded.record.role_sizes == {"train": 200, "stop": 180, "ens": 180, "test": 179}
    assert open_study(study.paths).user_attrs["seed"] == 0


def test_nothing_to_load_is_said(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError, match=r"there is no study in .* yet; `python -m search"):
        load_study(studies=tmp_path)
    with pytest.raises(NothingToDoError, match="there is no study 'absent' in"):
        load_study("absent", studies=tmp_path)


def test_the_record_of_another_version_is_refused(study: Study) -> None:
    storage = open_study(study.paths)
    record = {**storage.user_attrs["concertino"], "version": "9.9", "wheels": 4}
    storage.set_user_attr("concertino", record)

    with pytest.raises(StorageError, match=r"made by another version \(9\.9, this is .*wheels"):
        load_study("made", studies=study.paths.folder.parent)


def test_the_plain_optuna_reads_the_study(study: Study) -> None:
    plain = optuna.load_study(study_name="made", storage=f"sqlite:///{study.paths.database}")

    assert plain.best_value == 0.4
    assert plain.metric_names == ["log_loss"]

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from runs import Finished

from search.paths import StudyPaths
from search.study import Study, load_study


@pytest.fixture
def benchmark(load_script: Callable[[str], Any]) -> Any:
    return load_script("faults")


@pytest.fixture
def study(finished: Finished, tmp_path: Path) -> Study:
    """Return a copy of a study of six finished trials."""
    shutil.copytree(finished.study.paths.folder, tmp_path / "whole")
    return load_study("whole", studies=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)  # every killed process has another that must be started
def test_a_search_whose_processes_are_killed_has_all_its_trials_once(
    benchmark: Any, tmp_path: Path
) -> None:
    paths = StudyPaths(tmp_path / benchmark.NAME)
    attack = benchmark.Attack(
        paths=paths, n_trials=8, n_epochs=4, seconds_between_kills=0.3, trials_between_kills=2
    )
    poller = benchmark.Poller(paths)

    with poller.looking():
        attack.go_on_until_done()

    found = benchmark.count(load_study(benchmark.NAME, studies=tmp_path), 8)
    assert (found.finished, found.lost, found.doubled) == (8, 0, 0)
    assert found.states[TrialState.RUNNING] == 0
    assert found.integrity == "ok"
    assert found.n_kept > 0
    assert found.checkpoints_left == []
    assert len(attack.kills) >= 2
    assert sum(kill.victim == "run" for kill in attack.kills) == 1
    assert poller.seconds
    assert poller.failures == []


@pytest.mark.slow
def test_nothing_is_missing_of_a_study_that_nobody_harmed(benchmark: Any, study: Study) -> None:
    found = benchmark.count(study, 6)

    assert (found.finished, found.lost, found.doubled, found.integrity) == (6, 0, 0, "ok")
    assert found.n_kept == 6


@pytest.mark.slow
def test_what_is_broken_counts_as_lost(benchmark: Any, study: Study) -> None:
    trials = [study.paths.trial(number) for number in range(6)]
    trials[0].weights.write_bytes(trials[0].weights.read_bytes()[:-40])
    trials[1].weights.unlink()
    trials[2].predictions("ens").write_bytes(trials[2].predictions("ens").read_bytes()[:-4])
    halved = np.load(trials[3].predictions("test")) - 1
    np.save(trials[3].predictions("test"), halved)
    trials[4].checkpoint.touch()

    found = benchmark.count(study, 6)

    assert found.broken_weights == [0, 1]
    assert found.broken_predictions == [2, 3]
    assert found.checkpoints_left == [4]
    assert found.lost == 4


@pytest.mark.slow
def test_what_is_lost_stuck_or_doubled_is_counted(benchmark: Any, study: Study) -> None:
    with closing(sqlite3.connect(study.paths.database)) as connection, connection:
        connection.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 5")
        connection.execute(
            "DELETE FROM trial_intermediate_values WHERE step = 1 AND trial_id = "
            "(SELECT trial_id FROM trials WHERE number = 4)"
        )
    with study.paths.log.open("a", encoding="utf-8") as log:
        log.write('{"message": "trial 0: complete, 0.5"}\n')

    found = benchmark.count(study, 6)

    complete = found.states[TrialState.COMPLETE]
    assert found.states[TrialState.RUNNING] == 1
    assert found.finished == 5
    assert found.broken_reports == ([4] if complete and _is_complete(study, 4) else [])
    assert found.lost == 1 + len(found.broken_reports)
    assert found.doubled == 1


def _is_complete(study: Study, number: int) -> bool:
    return study.trials()[number].state == TrialState.COMPLETE


@pytest.mark.slow
def test_kills_are_told_by_what_they_met(benchmark: Any, study: Study) -> None:
    trials = {trial.number: trial for trial in study.trials()}
    kills = [
        benchmark.Kill(victim="worker", trials=(0,)),
        benchmark.Kill(victim="worker", trials=()),
        benchmark.Kill(victim="run", trials=(1, 2)),
    ]

    rows = benchmark._rows(kills, trials)

    assert [row[:3] for row in rows] == [
        ["worker in a trial", "1", "1"],
        ["worker between trials", "1", "0"],
        ["run", "1", "2"],
    ]
    assert sum(int(count) for row in rows for count in row[3:]) == 3

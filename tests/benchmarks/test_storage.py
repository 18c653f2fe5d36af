import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from search.study import load_study


@pytest.fixture
def benchmark(load_script: Callable[[str], Any]) -> Any:
    return load_script("storage")


def test_a_large_study_is_one_that_commands_and_optuna_can_read(
    benchmark: Any, tmp_path: Path
) -> None:
    paths = benchmark.make_large_study(tmp_path, 30)

    study = load_study("large", studies=tmp_path)
    trials = study.trials()
    best = study.best()
    assert study.counts().complete == 30
    assert best is not None
    assert best.value == min(trial.value for trial in trials if trial.value is not None)
    assert len(trials[-1].intermediate_values) == 24
    assert trials[-1].params
    assert trials[-1].user_attrs["recipe"]["architecture"]["family"] in ("plain", "residual")
    copy = benchmark.copy_in_rollback_mode(paths, tmp_path / "copy")
    with closing(sqlite3.connect(copy / "study.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert benchmark.OPENERS["theirs"](copy).get_trials() == trials


def test_figures_of_a_load_are_worked_out_over_all_processes(
    benchmark: Any, tmp_path: Path
) -> None:
    benchmark._make_study("ours", tmp_path)
    done = [
        benchmark.Work(
            begun=[0, 1], n_finished=2, seconds=[0.1] * 98, trial_seconds=[1.0, 3.0], errors=[]
        ),
        benchmark.Work(
            begun=[1], n_finished=0, seconds=[0.1, 9.0], trial_seconds=[2.0], errors=["x", "x"]
        ),
    ]

    found = benchmark._sum_up(benchmark.StudyPaths(tmp_path), done)

    assert found.trials_per_second == 2 / 4
    assert found.p99 == pytest.approx(0.1 + 0.01 * 8.9)
    assert found.slowest_trial == 3
    assert (found.n_errors, found.kinds["x"], found.n_twice) == (2, 2, 1)
    assert (found.n_incomplete, found.n_running) == (0, 0)

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import make_tiny_study

from search.devices import Slot
from search.objective import run_trial
from search.rounds import TrialTime
from search.storage import ask, open_study
from search.workplace import open_workplace


@pytest.fixture
def parts(load_script: Callable[[str], Any]) -> Any:
    return load_script("parts")


def spin(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_part_within_a_part_counts_once_and_what_is_between_them_to_none(parts: Any) -> None:
    watch = parts.Stopwatch()
    inner = watch.timed("inner", spin)

    began = time.process_time()
    with watch.running("outer"):
        spin(0.02)
        inner(0.05)
        spin(0.01)
    whole = time.process_time() - began
    spin(0.03)
    inner(0.01)

    assert watch.cpu["inner"] >= 0.06
    assert 0.03 <= watch.cpu["outer"] <= whole - 0.05
    assert set(watch.cpu) == {"inner", "outer"}


def test_a_watched_trial_is_wholly_shared_out_and_the_code_is_as_before(
    parts: Any, tmp_path: Path
) -> None:
    study = make_tiny_study(tmp_path, limit_train=60)
    optuna_study = open_study(study.paths)
    slot = Slot(number=0, device="cpu", n_threads=1)
    place = open_workplace(study.paths, study.record, slot, lambda: False)
    trial = ask(optuna_study, 3)
    assert trial is not None
    before = {owner: dict(vars(owner)) for owner in (parts.search.objective, parts.WeightAverage)}
    watch = parts.Stopwatch()

    began = time.process_time()
    with parts.watched_trials(watch), watch.running("rest"):
        run_trial(trial, place, TrialTime(seconds=None, deadline=None))
    whole = time.process_time() - began

    assert set(watch.cpu) <= set(parts.PARTS)
    assert sum(watch.cpu.values()) <= whole
    for part in ("forward and backward", "optimizer", "augment", "predict at the end", "study"):
        assert watch.cpu[part] > 0
    assert {owner: dict(vars(owner)) for owner in before} == before

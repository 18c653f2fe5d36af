import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.config import StudyConfig

SETTINGS = StudyConfig(data="digits", epochs=4, pruner="rungs", seed=1)
BURN = "import time\nwhile time.process_time() < {}: pass\n"


@pytest.fixture
def benchmark(load_script: Callable[[str], Any]) -> Any:
    return load_script("fidelity")


def search(benchmark: Any, **changes: object) -> Any:
    values = {
        "pruner": "rungs", "seed": 1, "core_seconds": 60.0, "n_complete": 3, "n_pruned": 5,
        "best_accuracy": 0.7, "best_log_loss": 0.9, "accuracy": 0.75, "log_loss": 0.8, **changes,
    }  # fmt: skip
    return benchmark.Search(**values)


def test_core_seconds_are_those_of_a_process_its_children_and_its_dead(benchmark: Any) -> None:
    dead = f"subprocess.run([sys.executable, '-c', {BURN.format(0.2)!r}])\n"
    alive = (
        f"subprocess.Popen([sys.executable, '-c', {(BURN + 'print(1); input()').format(0.3)!r}])\n"
    )
    family = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys\n{dead}child = {alive}child.wait()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert family.stdout
    family.stdout.readline()

    used = benchmark.core_seconds_of(family.pid)
    family.communicate("\n")

    # Clock ticks of 10 ms are cut off for each process.
    assert used > 0.2 + 0.3 - 0.05
    assert benchmark.core_seconds_of(family.pid) == 0


def test_a_search_that_is_done_is_not_run_again(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []

    def run(config: StudyConfig, *_: object) -> Any:
        runs.append(config.name)
        return search(benchmark)

    monkeypatch.setattr(benchmark, "_run", run)

    first, again = (benchmark._done_or_run(tmp_path, SETTINGS, 60.0) for _ in range(2))

    assert runs == ["rungs-1"]
    assert first == again == search(benchmark)


def test_searches_of_other_settings_are_not_mixed(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {"settings": {"epochs": 5}, "search": {}}
    (tmp_path / "rungs-1.json").write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(SystemExit, match="2"):
        benchmark._done_or_run(tmp_path, SETTINGS, 60.0)

    assert "name another --work" in capsys.readouterr().err


@pytest.mark.parametrize(("median", "holds"), [((0.79, 0.83), True), ((0.89, 0.93), False)])
def test_the_default_may_be_behind_by_one_standard_error(
    benchmark: Any, median: tuple[float, float], *, holds: bool
) -> None:
    losses = {"none": (0.95, 0.95), "median": median, "rungs": (0.80, 0.80)}
    by_arm = {
        arm: [search(benchmark, pruner=arm, log_loss=loss) for loss in both]
        for arm, both in losses.items()
    }

    behind, cost = benchmark._bars(by_arm, "rungs")

    # Means 0.01 or 0.11 apart; the gaps of the two seeds are 0.04 apart: standard error 0.02.
    assert behind.value == pytest.approx(sum(median) / 2 - 0.80)
    assert behind.limit == pytest.approx(0.02)
    assert behind.holds == holds
    assert cost.value == 1

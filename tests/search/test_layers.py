import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("search.cli", "torch optuna sklearn numpy"),
        ("search.config", "torch optuna sklearn numpy"),
        ("search.workers", "torch sklearn"),  # devices are chosen before torch can see them
        ("search.supervisor", "torch"),
        ("search.training", "optuna sqlalchemy"),
        ("spaces.space", "torch optuna numpy"),
        ("ensembles.builder", "torch optuna"),
        ("ensembles.bundle", "optuna search"),
    ],
)
def test_a_module_is_imported_without_what_it_must_not_need(module: str, unwanted: str) -> None:
    program = f"""
import sys

import {module}

print(sorted(set("{unwanted}".split()) & set(sys.modules)))
"""

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert ran.stderr == ""
    assert ran.stdout == "[]\n"


def test_every_import_goes_down() -> None:
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as main; main()",
            "--no-logo",
            "--no-cache",
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout
    assert "8 kept, 0 broken" in ran.stdout

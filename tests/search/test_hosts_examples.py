import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import make_tiny_study

from search.cli import main
from search.storage import open_study

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["slurm_array.sbatch", "kubernetes_job.yaml", "ray_workers.py"])
def test_an_example_uses_flags_that_there_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    used: dict[str, set[str]] = {"run": set(), "worker": set()}
    for command in used:
        parts = re.findall(rf"search,? {command}\b[^\n]*(?:\n +args:[^\n]*)?", text)
        used[command] = {flag for part in parts for flag in re.findall(r"--[a-z-]+", part)}
    for command, flags in used.items():
        main([command, "--help"])
        known = capsys.readouterr().out
        assert [flag for flag in flags if f"{flag} " not in known] == []
    assert any(used.values())


def test_the_batch_script_is_one() -> None:
    script = EXAMPLES / "slurm_array.sbatch"

    subprocess.run(["/bin/bash", "-n", script], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not installed (pip install "ray")'
)
def test_ray_starts_a_worker_on_each_gpu(shared_database: str, tmp_path: Path) -> None:
    home = make_tiny_study(
        tmp_path / "home", name="on-ray", storage=shared_database, trials=4, epochs=1
    )
    words = ["--devices", "cpu", "--studies", str(tmp_path / "far")]

    done = subprocess.run(
        [
            *(sys.executable, EXAMPLES / "ray_workers.py", "on-ray", "--workers", "2"),
            *("--address", "local", "--local-gpus", "2", "--cpus-each", "0.5", "--", *words),
        ],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(EXAMPLES.parent),
            "HOME": str(tmp_path),
            "CONCERTINO_STORAGE": shared_database,
            "OMP_NUM_THREADS": "1",
        },
    )

    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(each["gpus"] for each in told) == ["0", "1"]
    assert max(each["finished"] for each in told) == 4  # one may go while the other ends the last
    states = [trial.state.is_finished() for trial in open_study(home.paths).trials]
    assert sum(states) == 4

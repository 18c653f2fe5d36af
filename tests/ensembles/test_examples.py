import re
import subprocess
import sys
from pathlib import Path

from ensembles.builder import METHODS

ROOT = Path(__file__).parents[2]


def test_somebody_elses_predictions_get_the_whole_table() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / "ensembles_from_predictions.py"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    accuracies = {
        method: float(share)
        for method, share in re.findall(r"^[> ] (\w+) +([\d.]+)%", done.stdout, re.MULTILINE)
    }
    assert set(accuracies) == set(METHODS) - {"soup"}  # somebody else's models have no weights
    assert accuracies["llp"] > accuracies["single"] + 2
    assert "The ensemble (llp, 5 members) is better than" in done.stdout
    covered = re.search(r"hold the true one in ([\d.]+)%", done.stdout)
    assert covered
    assert 92 < float(covered[1]) < 98

"""Does a worker keep anything from trial to trial?

Runs many tiny trials in one process, the way a worker does, and measures its memory and its open
files as it goes. The first trials import, fill caches and let the heap grow to its usual size;
what counts is the slope after them.

    python benchmarks/leaks.py            # 200 trials
    python benchmarks/leaks.py --quick    # 40 trials
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from search.config import StudyConfig
from search.devices import Slot
from search.loop import run_trials
from search.paths import StudyPaths
from search.preparation import make_study

BAR_MEGABYTES_PER_TRIAL = 0.2
"""At most; 0.2 MB is 20 MB in 100 trials. Optuna's cache of finished trials is part of it."""
TRIALS_BETWEEN_LOOKS = 10


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the process held after so many trials."""

    n_trials: int
    megabytes: float
    """Resident memory."""
    n_files: int
    """Open files, sockets and pipes."""
    n_threads: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials, print the table, and return 4 where something leaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    looks = measure(40 if options.quick else 200)
    slope = megabytes_per_trial(looks)
    leaks_files = looks[-1].n_files > looks[len(looks) // 2].n_files
    missed = slope > BAR_MEGABYTES_PER_TRIAL or leaks_files
    if options.json:
        print(json.dumps({"looks": [asdict(look) for look in looks], "slope": slope}))
        return 4 if missed else 0
    print("trials  memory MB  open files  threads")
    for look in looks:
        print(
            f"{look.n_trials:6d}  {look.megabytes:9.1f}  {look.n_files:10d}  {look.n_threads:7d}"
        )
    print(
        f"{1000 * slope:+.0f} kB for each trial of the second half (bar "
        f"{1000 * BAR_MEGABYTES_PER_TRIAL:.0f}): {'missed' if missed else 'met'}"
    )
    return 4 if missed else 0


def measure(n_trials: int) -> list[Look]:
    """Run so many tiny trials in this process, and look at it after every tenth."""
    with tempfile.TemporaryDirectory() as folder:
        config = StudyConfig(
            epochs=2,
            space="small",
            vary={"width": 8, "depth": 2},
            limit_train=200,
            devices="cpu",
            trials=n_trials,
            sampler="random",
            keep=1,
        )
        paths = StudyPaths(Path(folder) / "leaks")
        paths.folder.mkdir()
        make_study(paths, config, Path(folder), None)
        looks: list[Look] = []
        slot = Slot(number=0, device="cpu", n_threads=1)
        n_asked_before = 0

        def look() -> bool:
            """Look at the process when another ten trials are through; never stop."""
            nonlocal n_asked_before
            n_done = sum(1 for _ in paths.folder.glob("trials/*/stop.npy"))
            if n_done >= n_asked_before + TRIALS_BETWEEN_LOOKS:
                n_asked_before = n_done
                looks.append(_look(n_done))
            return False

        run_trials(paths, slot, look, n_trials=n_trials, deadline=None)
        looks.append(_look(n_trials))
    return looks


def megabytes_per_trial(looks: Sequence[Look]) -> float:
    """Return the slope of a line through the second half of the looks."""
    half = looks[len(looks) // 2 :]
    numbers, megabytes = (
        [getattr(look, name) for look in half] for name in ("n_trials", "megabytes")
    )
    return float(np.polyfit(numbers, megabytes, 1)[0])


def _look(n_trials: int) -> Look:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return Look(
        n_trials=n_trials,
        megabytes=pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        n_files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        n_threads=sum(1 for _ in Path("/proc/self/task").iterdir()),
    )


if __name__ == "__main__":
    sys.exit(main())

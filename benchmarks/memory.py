"""Sets larger than memory: a search that may use less memory than its decoded images take.

    python benchmarks/memory.py --data CIFAR10_FOLDER

The command that a user would type decodes all pictures to a side at which they take more than the
limit, trains, judges, builds the ensemble and opens the test images; once as it likes, and once in
a control group of the kernel, which kills what needs more. What the group counts are all processes
of the search and all pages of files that they read or write; the kernel drops those when it must,
and reads them again, which costs time. Each run decodes for itself, so no pages are there before.

It needs Linux and the right to make a control group, which root has (version 1 or 2).

`--quick` is a smaller set, drawn where no folder is given, and the limited run alone.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import Bar, Outcome, run_benchmark
from pictures import add_data_flag, check_data, make_folder

from search.data.store import open_store
from search.errors import ConfigError
from search.study import load_study

GROUPS = Path("/sys/fs/cgroup")
NAME = "concertino-memory"
MB = 1 << 20
LIMIT_MB, QUICK_LIMIT_MB = 2000, 1800
SIZE, QUICK_SIZE = 128, 224
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search took and did."""

    name: str
    exit_code: int
    wall_seconds: float
    peak_mb: float
    """Memory of all its processes without pages of files, at the most."""
    images_per_second: float
    """That the trials trained on, in the mean; 0 if there are none."""
    store_mb: float
    """All decoded images."""


@dataclass(frozen=True)
class Group:
    """A control group, by the names that its version of the kernel's interface has."""

    folder: Path
    limit: str
    anonymous: str
    """Key in `memory.stat` of what is no page of a file."""

    @property
    def entrance(self) -> Sequence[str]:
        """Words before a command that run it, and all that it starts, in the group."""
        return ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"))

    def dissolve(self) -> None:
        """End what is left of a search that was killed, and remove the group."""
        members = self.folder / "cgroup.procs"
        while left := members.read_text(encoding="ascii").split():
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self.folder.rmdir()

    def peak_of(self, process: subprocess.Popen[bytes]) -> float:
        """Return the most memory without pages of files, in MB, until the process ends."""
        peak = 0
        while process.poll() is None:
            stat = (self.folder / "memory.stat").read_text(encoding="ascii").split()
            figures = dict(zip(stat[::2], map(int, stat[1::2]), strict=True))
            peak = max(peak, figures[self.anonymous])
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return peak / MB


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_data_flag(parser)
    parser.add_argument("--limit", type=int, help=f"of the memory, in MB (default: {LIMIT_MB})")
    parser.add_argument("--image-size", type=int, help=f"side of the images (default: {SIZE})")


def measure(flags: argparse.Namespace) -> Outcome:
    """Search twice; see the module."""
    check_data(flags)
    size = flags.image_size or (QUICK_SIZE if flags.quick else SIZE)
    with tempfile.TemporaryDirectory() as name:
        folder = flags.data
        if flags.quick:
            folder = make_folder(
                Path(name) / "images",
                {"train": 8000, "val": 400, "test": 400},
                source=flags.data,
            )
        part = ("--limit-train", "1500") if flags.quick else ()
        # Networks that need little themselves.
        words = ("--data", str(folder), "--image-size", str(size), "--workers", "1", "--devices",
                 "cpu", "--trials", "1", "--epochs", "1", *part, "--vary.batch_sizes", "64",
                 "--vary.width", "8,8", "--vary.depth", "3,3")  # fmt: skip
        limit = flags.limit or (QUICK_LIMIT_MB if flags.quick else LIMIT_MB)
        limits = (limit,) if flags.quick else (None, limit)
        found = [_search(Path(name) / f"{each}", words, each) for each in limits]
    limited = found[-1]
    return Outcome(
        title=f"a search of {limited.store_mb:,.0f} MB of images of {size} px",
        headings=("memory", "exit code", "own, at most", "images/s", "wall s"),
        rows=[
            (each.name, f"{each.exit_code}", f"{each.peak_mb:,.0f} MB",
             f"{each.images_per_second:,.0f}", f"{each.wall_seconds:.1f}")
            for each in found
        ],
        bars=[
            Bar(name="images, of the memory", value=limited.store_mb / limit, limit=1,
                better="higher", unit=" times"),
            *(Bar(name=f"{each.name}: exit code", value=each.exit_code, limit=0, better="lower")
              for each in found),
        ],
        figures={"limit_mb": limit, "searches": [asdict(each) for each in found]},
        remarks=["own: without pages of files; images/s: that trials trained on, one thread each"],
    )  # fmt: skip


def _search(studies: Path, words: Sequence[str], limit_mb: int | None) -> Searched:
    """Run one search in a group of its own, and see what it comes to."""
    command = [sys.executable, "-m", "search", "run", "--name", "s", "--studies", str(studies)]
    studies.mkdir()
    with _group(limit_mb) as group, (studies / "log").open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(  # our own interpreter, our own flags
            [*group.entrance, *command, *words], stdout=log, stderr=log
        )
        peak = group.peak_of(process)
        wall = time.perf_counter() - began
    if process.returncode != 0:
        print((studies / "log").read_text(encoding="utf-8"), file=sys.stderr)
        sys.exit(1)
    study = load_study("s", studies=studies)
    n_train = study.record.role_sizes["train"]
    attributes = [trial.user_attrs for trial in study.trials()]
    speeds = [each["epochs"] * n_train / each["seconds"] for each in attributes if each]
    return Searched(
        name="as it likes" if limit_mb is None else f"{limit_mb:,} MB",
        exit_code=process.returncode,
        wall_seconds=wall,
        peak_mb=peak,
        images_per_second=sum(speeds) / max(1, len(speeds)),
        store_mb=open_store(study.record.store).images.nbytes / MB,
    )


@contextmanager
def _group(limit_mb: int | None) -> Iterator[Group]:
    """Make a control group, with a limit or without, and remove it in the end.

    Raises:
        ConfigError: The kernel or its rights do not allow it.
    """
    is_second = (GROUPS / "cgroup.controllers").is_file()
    parent = GROUPS if is_second else GROUPS / "memory"
    limit, anonymous = (
        ("memory.max", "anon") if is_second else ("memory.limit_in_bytes", "total_rss")
    )
    group = Group(parent / f"{NAME}-{os.getpid()}", limit, anonymous)
    try:
        if is_second:
            (parent / "cgroup.subtree_control").write_text("+memory", encoding="ascii")
        group.folder.mkdir()
        if limit_mb is not None:
            (group.folder / group.limit).write_text(str(limit_mb * MB), encoding="ascii")
    except OSError as error:
        raise ConfigError(
            f"{parent}: no control group can be made ({error.strerror}); expected Linux and root."
        ) from error
    try:
        yield group
    finally:
        group.dissolve()


if __name__ == "__main__":
    run_benchmark("Search a set larger than memory.", measure, add_flags=add_flags)

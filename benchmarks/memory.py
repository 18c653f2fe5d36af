"""Sets larger than memory: a search that may use less memory than its decoded images take.

    python benchmarks/memory.py --data CIFAR10_FOLDER

The command that a user would type decodes all pictures to a side at which they take more than the
limit, trains, judges, builds the ensemble and opens the test images; once as it likes, and once in
a control group of the kernel, which kills what needs more. What the group counts are all processes
of the search and all pages of files that they read or write; the kernel drops those when it must,
and reads them again, which costs time. Each run decodes for itself, so that none of its decoded
images are there before. Bar: the kernel kills no process, a worker that is started again included.

It needs Linux and the right to make a control group, which root has (version 1 or 2), and a folder
for temporary files on a disk: files of a tmpfs are memory.

`--quick` is a smaller set, drawn where no folder is given, and the limited run alone.
"""

import argparse
import json
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
SIZE, QUICK_SIZE = 128, 320
SECONDS_BETWEEN_LOOKS = 0.1
N_TRIES = 50
FIRST_VERSION = (
    "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "total_rss", "memory.oom_control"
)  # fmt: skip
SECOND_VERSION = ("memory.max", "memory.swap.max", "anon", "memory.events")


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search took and did."""

    name: str
    wall_seconds: float
    peak_mb: float
    """Memory of all its processes without pages of files, at the most."""
    n_killed: int
    """Processes that the kernel ended, since they needed more than the limit."""
    images_per_second: float
    """While the trial trained."""
    store_mb: float
    """All decoded images."""


@dataclass(frozen=True)
class Group:
    """A control group, by the names that its version of the kernel's interface has."""

    folder: Path
    limit: str
    swap: str
    """Names the limit of swap; there is none where the kernel has no swap."""
    anonymous: str
    """Key in `memory.stat` of what is no page of a file."""
    events: str
    """Names the file that counts processes that were killed."""

    def set_limit(self, n_bytes: int) -> None:
        """Limit memory, and let nothing swap."""
        (self.folder / self.limit).write_text(str(n_bytes), encoding="ascii")
        if (self.folder / self.swap).is_file():
            # Version 1 limits memory and swap together, version 2 swap alone.
            swap = n_bytes if self.swap.startswith("memory.memsw") else 0
            (self.folder / self.swap).write_text(str(swap), encoding="ascii")

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
        for _ in range(N_TRIES):
            with suppress(OSError):  # the kernel may not have buried them yet
                return self.folder.rmdir()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return None

    def count_killed(self) -> int:
        """Return how many processes the kernel ended for their memory."""
        counts = (self.folder / self.events).read_text(encoding="ascii").split()
        return int(counts[counts.index("oom_kill") + 1])

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
                {"train": 3600, "val": 400, "test": 400},
                source=flags.data,
            )
        part = ("--limit-train", "600") if flags.quick else ()
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
        headings=("memory", "killed", "own, at most", "images/s", "wall s"),
        rows=[
            (each.name, f"{each.n_killed}", f"{each.peak_mb:,.0f} MB",
             f"{each.images_per_second:,.0f}", f"{each.wall_seconds:.1f}")
            for each in found
        ],
        bars=[
            Bar(name="images, of the memory", value=limited.store_mb / limit, limit=1,
                better="higher", unit=" times"),
            *(Bar(name=f"{each.name}: killed by the kernel", value=each.n_killed, limit=0,
                  better="lower") for each in found),
        ],
        figures={"limit_mb": limit, "searches": [asdict(each) for each in found]},
        remarks=["own: without pages of files; images/s: while the trial trained, on all cores"],
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
        n_killed = group.count_killed()
    if process.returncode != 0:
        print((studies / "log").read_text(encoding="utf-8"), file=sys.stderr)
        print(f"the search ended with exit code {process.returncode}, {n_killed} of its processes "
              "were killed by the kernel", file=sys.stderr)  # fmt: skip
        sys.exit(1)
    study = load_study("s", studies=studies)
    *_, last = json.loads(study.paths.trial(0).history.read_text(encoding="utf-8"))
    return Searched(
        name="as it likes" if limit_mb is None else f"{limit_mb:,} MB",
        n_killed=n_killed,
        wall_seconds=wall,
        peak_mb=peak,
        images_per_second=last["images_seen"] / last["seconds"],
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
    names = SECOND_VERSION if is_second else FIRST_VERSION
    group = Group(parent / f"{NAME}-{os.getpid()}", *names)
    try:
        if is_second and "memory" not in (parent / "cgroup.subtree_control").read_text().split():
            (parent / "cgroup.subtree_control").write_text("+memory", encoding="ascii")
        group.folder.mkdir()
        if limit_mb is not None:
            group.set_limit(limit_mb * MB)
    except OSError as error:
        raise ConfigError(
            f"{parent}: no control group can be made ({error.strerror}); expected Linux and root, "
            "outside of a container."
        ) from error
    try:
        yield group
    finally:
        group.dissolve()


if __name__ == "__main__":
    run_benchmark("Search a set larger than memory.", measure, add_flags=add_flags)

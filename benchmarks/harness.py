"""What all benchmarks share: flags, a table, bars, and exit code 4 when a bar is missed."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from search.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A figure that a benchmark promises."""

    name: str
    value: float
    limit: float
    better: Literal["lower", "higher"]
    """Which side of the limit is good; the limit itself holds."""
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Whether the promise was kept; a value that is no number keeps none."""
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a benchmark found."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[Bar]
    figures: dict[str, Any] = field(default_factory=dict)
    """Everything that was measured, for `--json`."""
    remarks: Sequence[str] = ()


def describe_machine() -> dict[str, str]:
    """Return what the figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = f"{names[0]}, {len(names)} cores" if names else cpu
    libraries = {name: version(name) for name in ("numpy", "scipy", "torch", "optuna")}
    return {"cpu": cpu, "python": platform.python_version(), **libraries}


def busy_seconds() -> float:
    """Return the CPU time that all processes of the machine have used; 0 where it is not told."""
    file = Path("/proc/stat")
    if not file.is_file():
        return 0.0
    fields = [int(word) for word in file.read_text(encoding="ascii").splitlines()[0].split()[1:]]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = fields[:8]
    used = user + nice + system + interrupts + soft_interrupts + stolen
    return used / os.sysconf("SC_CLK_TCK")


def fastest_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the CPU seconds of the fastest of some repeats, after one to warm up."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def describe_others(cores: float) -> str:
    """Say whether other work on the machine blurs wall times.

    Args:
        cores: How many cores it took.
    """
    if cores < 0.1:
        return "nothing else ran on the machine"
    return f"other work took {cores:.1f} cores meanwhile: mind wall times less than CPU times"


def run_benchmark(
    description: str,
    measure: Callable[[argparse.Namespace], Outcome],
    *,
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """Read the flags, measure, print, and exit with 0, or with 4 when a bar is missed.

    A flag or data that cannot be used ends it with one line and 2.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller run, under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    add_flags(parser)
    flags = parser.parse_args()
    try:
        outcome = measure(flags)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if flags.json:
        print(json.dumps(_document(outcome)))
    else:
        console = Console()
        _print(console if console.is_terminal else Console(width=120), outcome)
    sys.exit(0 if all(bar.holds for bar in outcome.bars) else 4)


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "schema": 1,
        "benchmark": outcome.title,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "figures": outcome.figures,
        "bars": [{**asdict(bar), "holds": bar.holds} for bar in outcome.bars],
    }


def _print(console: Console, outcome: Outcome) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, title=outcome.title)
    for number, heading in enumerate(outcome.headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in outcome.rows:
        table.add_row(*row)
    console.print(table)
    for remark in outcome.remarks:
        console.print(remark, highlight=False, soft_wrap=True)
    for bar in outcome.bars:
        sign = "at most" if bar.better == "lower" else "at least"
        state = "holds " if bar.holds else "MISSED"
        console.print(
            f"{state} {bar.name}: {bar.value:.4g}{bar.unit} ({sign} {bar.limit:g}{bar.unit})",
            highlight=False,
            soft_wrap=True,
        )

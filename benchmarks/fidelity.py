"""What pruning is worth: searches without it, with median pruning and with rungs, at equal cost.

    python benchmarks/fidelity.py --data CIFAR10_FOLDER --work FOLDER

Every search is the command that a user would type, and may use the same core seconds: CPU time of
all its processes, start and refits of the ensemble included, so that other work on the machine
changes little. Trials have equal numbers of epochs, as many of them as the time allows; then comes
Ctrl-C, and what runs is given up. The ensemble is built as always, and the test images are opened.

The searches alternate, seed by seed. One that is done is kept in `--work` and not run again; so
the table can be filled in pieces. One that was cut off is run anew.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Literal, TypeAlias

import optuna
from harness import Bar, Outcome, run_benchmark

from search.config import Pruner, StudyConfig
from search.durations import format_duration, parse_duration
from search.ensembling import build_ensemble
from search.errors import NothingToDoError
from search.interruption import watched_signals
from search.paths import StudyPaths, written_whole
from search.preparation import make_study
from search.study import Study, load_study

ARMS: Sequence[Pruner] = ("none", "median", "rungs")
MANY_TRIALS = 2_000
"""More than any search comes to."""
MAX_COST_RATIO = 1.1
SECONDS_BETWEEN_LOOKS = 0.2
INTERRUPTED = 130
Figure: TypeAlias = Literal["best_accuracy", "best_log_loss", "accuracy", "log_loss"]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What one search found on the test images, and what it cost."""

    pruner: Pruner
    seed: int
    core_seconds: float
    n_complete: int
    n_pruned: int
    best_accuracy: float
    """Of the single trial that would be exported, with its temperature."""
    best_log_loss: float
    accuracy: float
    """Of the ensemble of the default choice."""
    log_loss: float


def measure(flags: argparse.Namespace) -> Outcome:
    """Run the searches that are not done yet, and compare all; see the module."""
    settings = _settings(flags)
    work = flags.work or Path(tempfile.mkdtemp(prefix="fidelity-"))
    budget = parse_duration(flags.budget or ("8s" if flags.quick else "15m"))
    n_seeds = flags.seeds or (1 if flags.quick else 3)
    _decode(settings, work)
    searches = [
        _done_or_run(work, settings.replaced(pruner=pruner, seed=seed), budget)
        for seed in range(n_seeds)
        for pruner in ARMS
    ]
    by_arm = {arm: [each for each in searches if each.pruner == arm] for arm in ARMS}
    best = min(ARMS, key=lambda arm: _mean(by_arm[arm], "log_loss"))
    return Outcome(
        title=f"{settings.data}: {n_seeds} searches each, {format_duration(budget)} of one core, "
        f"{settings.epochs} epochs a trial",
        headings=("pruner", "complete", "pruned", "best, accuracy", "log-loss",
                  "ensemble, accuracy", "log-loss"),
        rows=[_row(arm, by_arm[arm]) for arm in ARMS],
        bars=_bars(by_arm, best) if n_seeds > 1 else [],
        figures={
            "budget_seconds": budget,
            "settings": settings.model_dump(mode="json", exclude_unset=True),
            "searches": [asdict(each) for each in searches],
            "best": best,
        },
        remarks=(
            "on the test images" + "; mean ± standard deviation over the seeds" * (n_seeds > 1),
            f"best by the mean log-loss of its ensembles: {best}",
            *(_against(by_arm, best, arm) for arm in ARMS if arm != best),
            "core seconds: " + _costs(searches),
        ),
    )  # fmt: skip


def _settings(flags: argparse.Namespace) -> StudyConfig:
    if flags.quick and flags.data is None:
        return StudyConfig(data="digits", epochs=flags.epochs or 4, workers=flags.workers,
                           devices="cpu", trials=MANY_TRIALS)  # fmt: skip
    if flags.data is None or flags.work is None:
        print("say --data FOLDER and --work FOLDER, or --quick; see --help.", file=sys.stderr)
        sys.exit(2)
    return StudyConfig(data=str(flags.data), limit_train=flags.limit_train,
                       epochs=flags.epochs or 8, workers=flags.workers, devices="cpu",
                       trials=MANY_TRIALS)  # fmt: skip


def _decode(settings: StudyConfig, work: Path) -> None:
    """Decode the images, which all searches share, so that the first one does not pay for it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    paths = StudyPaths(work / "decoding")
    paths.folder.mkdir(parents=True, exist_ok=True)
    make_study(paths, settings.replaced(name=paths.name), work, None)
    shutil.rmtree(paths.folder)


def _done_or_run(work: Path, settings: StudyConfig, budget: float) -> Search:
    """Return what a search found that was done before; else run it."""
    name = f"{settings.pruner}-{settings.seed}"
    asked = {**settings.model_dump(mode="json", exclude_unset=True), "budget_seconds": budget}
    file = work / f"{name}.json"
    if file.is_file():
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["settings"] != asked:
            print(f"{file} was made with {document['settings']}, asked is {asked}; "
                  "name another --work.", file=sys.stderr)  # fmt: skip
            sys.exit(2)
        return Search(**document["search"])
    shutil.rmtree(work / name, ignore_errors=True)
    found = _run(settings.replaced(name=name), work, budget)
    with written_whole(file) as temporary:
        document = {"settings": asked, "search": asdict(found)}
        temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(
        f"{name}: {found.n_complete} complete, {found.n_pruned} pruned; ensemble "
        f"{100 * found.accuracy:.2f} %, log-loss {found.log_loss:.4f}",
        file=sys.stderr,
    )
    return found


def _run(config: StudyConfig, studies: Path, budget: float) -> Search:
    said = config.model_dump(mode="json", exclude_unset=True)
    words = [word for key, value in said.items() for word in (_flag(key), str(value))]
    command = [sys.executable, "-m", "search", "run", *words, "--studies", str(studies)]
    with (studies / f"{config.name}.log").open("w") as log, watched_signals() as interruption:
        process = subprocess.Popen(  # our own interpreter, our own flags
            command, stdout=log, stderr=log, start_new_session=True
        )
        spent = 0.0
        while process.poll() is None and spent < budget and not interruption():
            time.sleep(SECONDS_BETWEEN_LOOKS)
            spent = max(spent, core_seconds_of(process.pid))
        process.send_signal(signal.SIGINT)
        code = process.wait()
    if interruption():
        sys.exit(interruption.exit_code)
    if code != INTERRUPTED:
        print(f"a search ended by itself with exit code {code}; see {log.name}.", file=sys.stderr)
        sys.exit(1)
    return _describe(load_study(config.name, studies=studies), spent)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _describe(study: Study, core_seconds: float) -> Search:
    config, counts = study.record.config, study.counts()
    try:
        report = build_ensemble(study).report
    except NothingToDoError as error:
        print(f"{error} Give it a larger --budget.", file=sys.stderr)
        sys.exit(3)
    single = next(row for row in report.rows if row.method == "single")
    return Search(
        pruner=config.pruner,
        seed=config.seed,
        core_seconds=round(core_seconds, 1),
        n_complete=counts.complete,
        n_pruned=counts.pruned,
        best_accuracy=single.test.accuracy,
        best_log_loss=single.test.log_loss,
        accuracy=report.chosen_row.test.accuracy,
        log_loss=report.chosen_row.test.log_loss,
    )


def core_seconds_of(process: int) -> float:
    """Return the CPU time of a process and of all that descend from it, dead ones included."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        number = int(file.parent.name)
        parents[number] = int(fields[1])
        ticks[number] = sum(map(int, fields[11:15]))  # its own, and of children that it buried
    family = {process} & ticks.keys()
    while more := {number for number, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks[number] for number in family) / os.sysconf("SC_CLK_TCK")


def _mean(searches: Sequence[Search], figure: Figure) -> float:
    values: list[float] = [getattr(each, figure) for each in searches]
    return statistics.mean(values)


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _row(arm: Pruner, searches: Sequence[Search]) -> tuple[str, ...]:
    def figure(name: Figure, form: Callable[[float], str]) -> str:
        mean = form(_mean(searches, name))
        spread = form(_spread([getattr(each, name) for each in searches]))
        return f"{mean} ± {spread}" if len(searches) > 1 else mean

    return (
        arm,
        f"{statistics.mean(each.n_complete for each in searches):.0f}",
        f"{statistics.mean(each.n_pruned for each in searches):.0f}",
        figure("best_accuracy", lambda value: f"{100 * value:.2f}"),
        figure("best_log_loss", lambda value: f"{value:.4f}"),
        figure("accuracy", lambda value: f"{100 * value:.2f}"),
        figure("log_loss", lambda value: f"{value:.4f}"),
    )


def _difference(
    by_arm: Mapping[Pruner, Sequence[Search]], arm: Pruner, other: Pruner
) -> tuple[float, float]:
    """Return by how much the log-loss of one arm is above the other's, and its standard error."""
    gaps = [
        one.log_loss - two.log_loss for one, two in zip(by_arm[arm], by_arm[other], strict=True)
    ]
    return statistics.mean(gaps), _spread(gaps) / sqrt(len(gaps))


def _against(by_arm: Mapping[Pruner, Sequence[Search]], best: Pruner, arm: Pruner) -> str:
    gap, error = _difference(by_arm, arm, best)
    if len(by_arm[arm]) == 1:
        return f"{arm}: {gap:.4f} nats above it, on one seed, which says little"
    return f"{arm}: {gap:.4f} ± {error:.4f} nats above it (standard error over the seeds)"


def _costs(searches: Sequence[Search]) -> str:
    costs = [each.core_seconds for each in searches]
    return f"{min(costs):,.0f} to {max(costs):,.0f} a search"


def _bars(by_arm: Mapping[Pruner, Sequence[Search]], best: Pruner) -> list[Bar]:
    default = StudyConfig().pruner
    gap, error = _difference(by_arm, default, best)
    costs = [each.core_seconds for searches in by_arm.values() for each in searches]
    return [
        Bar(name=f"log-loss of the default, {default}, above the best", value=gap, limit=error,
            better="lower", unit=" nats"),
        Bar(name="dearest search, of the cheapest", value=max(costs) / min(costs),
            limit=MAX_COST_RATIO, better="lower", unit=" times"),
    ]  # fmt: skip


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="CIFAR-10 as folders of images")
    parser.add_argument("--work", type=Path, help="where searches lie; what is done is kept")
    parser.add_argument("--budget", help="core seconds of one search: 150s, 40m (default: 15m)")
    parser.add_argument("--seeds", type=int, help="searches of each kind (default: 3)")
    parser.add_argument("--epochs", type=int, help="of a whole trial (default: 8)")
    parser.add_argument("--limit-train", type=int, default=10_000, help="images to train on")
    parser.add_argument("--workers", type=int, default=2, help="of each search")


if __name__ == "__main__":
    run_benchmark("Compare ways of pruning at equal cost.", measure, add_flags=_add_flags)

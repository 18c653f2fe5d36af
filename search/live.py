"""The table that a user sees while a study runs, and the lines where there is no terminal."""

from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ensembles.metrics import METRICS
from search.assignments import order_name
from search.candidate_names import candidate_title
from search.curve_points import CurvePoint
from search.durations import format_duration
from search.supervisor import Snapshot
from search.trials import FINISHED, count_trials, ranked, seconds_left, trial_row

N_NEWEST = 6
TRIALS_BETWEEN_ENSEMBLES = 10
"""Where there is no terminal: finished trials between two lines about the ensemble."""


@dataclass
class LiveView:
    """Shows snapshots of a run: a live table on a terminal, one line for each trial elsewhere."""

    console: Console
    _live: Live | None = field(default=None, init=False)
    _study: str = field(default="", init=False)
    """Which study is shown: that of the search, or one nested in it."""
    _told: set[int] = field(default_factory=set, init=False)
    _told_slots: set[int] = field(default_factory=set, init=False)
    _done_before: int | None = field(default=None, init=False)
    _n_done: int = field(default=0, init=False)
    _n_trials: int = field(default=0, init=False)
    _ensemble: CurvePoint | None = field(default=None, init=False)
    _shortage: str = field(default="", init=False)

    def __enter__(self) -> "LiveView":
        """Begin to draw."""
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None

    def show_decoding(self, n_done: int, n_images: int) -> None:
        """Draw how many images are decoded."""
        if self._live:
            grid = Table.grid(padding=(0, 2))
            bar = ProgressBar(total=n_images, completed=n_done, width=30)
            grid.add_row("decoding images", bar, f"{n_done:,} of {n_images:,}")
            self._live.update(grid)

    def show_ensemble(self, point: CurvePoint) -> None:
        """Draw, from now on, how good the ensemble of what is finished is.

        Where there is no terminal, one line for every ten finished trials.
        """
        before, self._ensemble = self._ensemble, point
        is_due = before and (
            point.n_finished // TRIALS_BETWEEN_ENSEMBLES
            > before.n_finished // TRIALS_BETWEEN_ENSEMBLES
        )
        if is_due and not self._live:
            line = f"[{point.n_finished}/{self._n_trials}] {point.sentence()}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def show_shortage(self, shortage: str) -> None:
        """Draw why the search waits for room on the disk, or no longer if it does not.

        Where there is no terminal, one line when it begins to wait and one when it goes on.
        """
        before, self._shortage = self._shortage, shortage
        if self._live:
            if shortage:  # nothing else changes while all wait
                self._live.update(Text(shortage, style="yellow"))
        elif bool(before) != bool(shortage):
            self.show_warning(shortage or "there is room on the disk again; the search goes on")

    def show_warning(self, text: str) -> None:
        """Write a line that stays."""
        self.console.print(text, style="yellow", highlight=False, soft_wrap=True)

    def show(self, snapshot: Snapshot) -> None:
        """Draw one moment of the run."""
        self._n_trials = snapshot.n_trials
        finished = [trial for trial in snapshot.trials if trial.state.is_finished()]
        if self._study != snapshot.record.config.study_name:
            self._study, self._done_before = snapshot.record.config.study_name, None
        if self._done_before is None:
            self._told = {trial.number for trial in finished}
            self._done_before = sum(trial.state in FINISHED for trial in finished)
            self._n_done = self._done_before
        if self._live:
            ensemble = None if snapshot.record.ordered else self._ensemble
            table = _table(snapshot, self._done_before, ensemble)
            below = [Text(self._shortage, style="yellow")] if self._shortage else []
            self._live.update(Group(table, *below))
            return
        for stopped in snapshot.stopped_slots:
            if stopped.slot.number not in self._told_slots:
                self._told_slots.add(stopped.slot.number)
                self.console.print(stopped.sentence(), highlight=False, soft_wrap=True)
        for trial in finished:
            if trial.number not in self._told:
                self._told.add(trial.number)
                self._n_done += trial.state in FINISHED  # a failed one is replaced
                line = _line(trial, self._n_done, snapshot)
                self.console.print(line, highlight=False, soft_wrap=True)


def _line(trial: FrozenTrial, n_done: int, snapshot: Snapshot) -> str:
    row = trial_row(trial)
    title = candidate_title(order_name(trial) or str(row.number))
    words = [f"[{n_done}/{snapshot.n_trials}] {title}: {row.state}"]
    if row.log_loss is not None and row.accuracy is not None:
        words.append(f"log-loss {row.log_loss:.4f}, accuracy {100 * row.accuracy:.2f} %")
    if row.seconds is not None:
        words.append(f"{row.seconds:.1f} s")
    if row.ending:
        words.append(row.ending)
    return ", ".join(words)


def _table(snapshot: Snapshot, done_before: int, ensemble: CurvePoint | None) -> RenderableType:
    parts = [_headline(snapshot, done_before), _trials_table(snapshot)]
    if ensemble:
        parts.insert(1, Text(ensemble.sentence()))
    parts += [Text(each.sentence(), style="red") for each in snapshot.stopped_slots]
    return Group(*parts)


def _headline(snapshot: Snapshot, done_before: int) -> RenderableType:
    counts = count_trials(snapshot.trials)
    ordered = snapshot.record.ordered
    left = seconds_left(snapshot.trials, snapshot.n_trials, snapshot.seconds, done_before)
    times = [left, snapshot.seconds_left] if snapshot.seconds_left is not None else [left]
    known = [seconds for seconds in times if seconds is not None]
    best = ranked(snapshot.trials, rises=METRICS[snapshot.record.config.metric].higher_is_better)
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        Text(snapshot.record.config.study_name, style="bold"),
        ProgressBar(total=snapshot.n_trials, completed=counts.finished, width=30),
        f"{counts.finished}/{snapshot.n_trials} {'trainings' if ordered else 'trials'}",
        f"{counts.pruned} pruned" + (f", {counts.failed} failed" if counts.failed else ""),
        format_duration(snapshot.seconds),
        f"about {format_duration(min(known))} left" if known else "",
    )
    if ordered or not best:
        return grid
    row = trial_row(best[0])
    scores = f"log-loss {row.log_loss or 0:.4f}, accuracy {100 * (row.accuracy or 0):.2f} %"
    return Group(grid, Text(f"best so far: trial {row.number}, {scores} on the stop role"))


def _trials_table(snapshot: Snapshot) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("trial", "state", "round", "log-loss", "accuracy", "seconds", "slot", ""):
        left = heading in ("state", "")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    finished = [trial for trial in snapshot.trials if trial.state.is_finished()]
    finished.sort(key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete))
    running = [trial for trial in snapshot.trials if trial.state == TrialState.RUNNING]
    in_nats = snapshot.record.config.metric == "log_loss"  # what a running trial has reported
    for trial in finished[-N_NEWEST:] + running:
        row = trial_row(trial)
        reported = trial.intermediate_values
        table.add_row(
            order_name(trial) or str(row.number),
            Text(row.state, style=_STYLES.get(row.state, "")),
            f"{row.rounds}/{snapshot.record.plan.n_rounds}",
            _number(row.log_loss, ".4f")
            or (_number(reported[max(reported)], ".4f") if reported and in_nats else ""),
            _number(None if row.accuracy is None else 100 * row.accuracy, ".2f", " %"),
            _number(row.seconds, ".1f"),
            "" if row.slot is None else str(row.slot),
            row.ending,
        )
    return table


_STYLES = {"complete": "green", "pruned": "yellow", "fail": "red", "running": "cyan"}


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"

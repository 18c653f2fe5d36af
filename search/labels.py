"""What `predict` says of each picture, and how it is written: table, JSON lines, CSV."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float

from ensembles.bundle import Bundle, Prediction
from search.errors import ConfigError
from search.inference import printable
from search.paths import written_whole

SCHEMA = 1
UNSURE = "-"


@runtime_checkable
class Stream(Protocol):
    """What is asked of a text stream."""

    def write(self, text: str, /) -> int:
        """Write text."""
        ...

    def flush(self) -> None:
        """Let the reader have it."""
        ...

    def isatty(self) -> bool:
        """Tell whether the reader is a person."""
        ...


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The most likely classes of one picture."""

    file: str
    label: str | None
    """None if no class is likely enough."""
    ranking: tuple[tuple[str, float], ...]
    """Classes and probabilities: the one that the bundle decides for, then the most likely."""
    possible: tuple[str, ...] | None = None
    """Classes that it may have, the most likely first; None if nobody asked."""


Write: TypeAlias = Callable[[Sequence[Labels]], None]


def rank_classes(
    file: str,
    probabilities: Float[np.ndarray, " classes"],
    class_names: Sequence[str],
    *,
    n_ranked: int,
    threshold: float,
    decided: str | None = None,
) -> Labels:
    """Sort the classes of a picture.

    Args:
        file: Name of the picture.
        probabilities: One for each class.
        class_names: In the order of the probabilities.
        n_ranked: How many of the most likely classes to keep, if there are so many.
        threshold: A less likely class is not given as the label.
        decided: The class that leads whatever the order; default: the most likely one.

    Returns:
        The label and the ranking; of equally likely classes, the first one leads.
    """
    order = np.argsort(-probabilities, kind="stable")
    if decided is not None:
        leader = class_names.index(decided)
        order = np.concatenate([[leader], order[order != leader]])
    order = order[:n_ranked]
    ranking = tuple((class_names[index], float(probabilities[index])) for index in order)
    label, probability = ranking[0]
    return Labels(file=file, label=label if probability >= threshold else None, ranking=ranking)


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What is asked of a bundle besides probabilities."""

    sets: bool = False
    """The classes that a picture may have."""
    reject: bool = False
    """No label where the bundle does not answer for it."""
    cascade: bool | None = None
    """Members that run one after another, until they are sure."""

    def __post_init__(self) -> None:
        """Refuse what nobody promises.

        Raises:
            ConfigError: A promise is asked of a cascade.
        """
        if self.cascade and (self.sets or self.reject):
            raise ConfigError(
                "--sets and --reject promise something of the whole ensemble; leave --cascade out."
            )

    def check(self, bundle: Bundle) -> None:
        """Refuse a bundle that cannot do what is asked.

        Raises:
            ConfigError: It carries no sets, or no threshold.
        """
        if self.sets and bundle.manifest.conformal is None:
            raise ConfigError(
                f"--sets: {bundle.folder} promises no sets; `export --alpha 0.1` adds them."
            )
        if self.reject and bundle.manifest.rejection is None:
            raise ConfigError(
                f"--reject: {bundle.folder} answers for every picture; "
                "`export --target-accuracy 0.95` changes that."
            )

    @property
    def runs_cascade(self) -> bool | None:
        """How to run, None as the bundle prefers; what is promised of all members wants all."""
        return False if self.sets or self.reject else self.cascade

    def label(
        self,
        prediction: Prediction,
        class_names: Sequence[str],
        *,
        n_ranked: int,
        threshold: float,
    ) -> Labels:
        """Return the label of a picture that could be read; see `rank_classes`."""
        labels = rank_classes(
            str(prediction.source),
            prediction.probabilities,
            class_names,
            n_ranked=n_ranked,
            threshold=threshold,
            decided=prediction.label,
        )
        return replace(
            labels,
            label=labels.label if prediction.is_answered or not self.reject else None,
            possible=prediction.possible_classes if self.sets else None,
        )


@contextmanager
def open_writers(
    stdout: Stream,
    *,
    json_lines: bool,
    output: Path | None,
    columns: Sequence[str],
    n_ranked: int | None,
    with_sets: bool = False,
) -> Iterator[Write]:
    """Open what `predict` writes to.

    Args:
        stdout: Gets JSON lines, or a table unless there is an output file.
        json_lines: Write JSON lines to `stdout`.
        output: A file to write, `.csv` or `.jsonl`; it appears when the block ends well.
        columns: Names of the classes.
        n_ranked: How many of them are in each row; None: all, a column for each in a CSV file.
        with_sets: Whether a CSV file has a column for the classes that are possible.

    Yields:
        A function that writes a batch of rows.
    """
    writers: list[Write] = []
    with ExitStack() as stack:
        if json_lines:
            writers.append(json_lines_writer(stdout))
        elif output is None:
            writers.append(terminal_writer() if stdout.isatty() else text_writer(stdout))
        if output is not None:
            path = stack.enter_context(written_whole(output))
            # Names of files need not be UTF-8: what cannot be decoded is written as it was.
            file = stack.enter_context(
                path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            )
            is_csv = output.suffix == ".csv"
            writers.append(
                csv_writer(file, columns, n_ranked, with_sets=with_sets)
                if is_csv
                else json_lines_writer(file)
            )

        def write(batch: Sequence[Labels]) -> None:
            for each in writers:
                each(batch)

        yield write


def json_lines_writer(stream: Stream) -> Write:
    """Write one JSON document for each picture, a line each."""

    def write(batch: Sequence[Labels]) -> None:
        for labels in batch:
            stream.write(json.dumps(_document(labels)) + "\n")
        stream.flush()

    return write


def csv_writer(
    stream: Stream, class_names: Sequence[str], n_ranked: int | None, *, with_sets: bool = False
) -> Write:
    """Write one row for each picture, after a row of names.

    Args:
        stream: Opened with `newline=""`.
        class_names: Names in the order of the columns.
        n_ranked: Number of the most likely classes in each row; None: a column for each class.
        with_sets: Whether there is a column for the classes that are possible, with a bar between.
    """
    rows = csv.writer(stream)
    sets = ["set"] if with_sets else []
    if n_ranked is None:
        ending = [f"p({name})" for name in class_names]
    else:
        places = range(2, n_ranked + 1)
        ending = [name for place in places for name in (f"label_{place}", f"probability_{place}")]
    rows.writerow(["file", "label", "probability", *sets, *ending])

    def write(batch: Sequence[Labels]) -> None:
        for labels in batch:
            if n_ranked is None:
                by_name = dict(labels.ranking)
                rest: list[str] = [_number(by_name[name]) for name in class_names]
            else:
                rest = [
                    text
                    for name, probability in labels.ranking[1:]
                    for text in (name, _number(probability))
                ]
            best = labels.ranking[0][1]
            possible = ["|".join(labels.possible or ())] if with_sets else []
            rows.writerow([labels.file, labels.label or "", _number(best), *possible, *rest])

    return write


def text_writer(stream: Stream) -> Write:
    """Write aligned columns without ornaments, for a pipe or a file."""
    widths: list[int] = []

    def write(batch: Sequence[Labels]) -> None:
        table = [_cells(labels) for labels in batch]
        if not widths and table:  # of the first batch: a table must not wait for the last picture
            widths.extend(max(map(len, column)) for column in zip(*table, strict=True))
        for cells in table:
            padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            stream.write("  ".join(padded).rstrip() + "\n")
        stream.flush()

    return write


def terminal_writer() -> Write:
    """Print a table for people, piece by piece."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    widths: list[int] = []

    def write(batch: Sequence[Labels]) -> None:
        rows = [_cells(labels) for labels in batch]
        if not rows:
            return
        table = Table(box=None, header_style="bold", pad_edge=False, show_header=not widths)
        headings = ("file", "label", "probability", "next")
        if not widths:
            columns = zip(headings, *rows, strict=True)
            widths.extend(max(map(len, column)) for column in columns)
        for heading, width in zip(headings, widths, strict=True):
            table.add_column(heading, min_width=width, overflow="fold")
        for file, label, probability, following in rows:
            style = "dim" if label == UNSURE else "bold"
            table.add_row(
                Text(file), Text(label, style=style), probability, Text(following, style="dim")
            )
        console.print(table)

    return write


def _document(labels: Labels) -> Mapping[str, object]:
    possible = {} if labels.possible is None else {"set": list(labels.possible)}
    return {
        "schema": SCHEMA,
        "file": labels.file,
        "label": labels.label,
        "probability": labels.ranking[0][1],
        **possible,
        "probabilities": dict(labels.ranking),
    }


def _cells(labels: Labels) -> tuple[str, str, str, str]:
    unsure = labels.label is None
    return (
        printable(labels.file),
        UNSURE if unsure else printable(labels.ranking[0][0]),
        f"{labels.ranking[0][1]:.4f}",
        _remark(labels),
    )


def _remark(labels: Labels) -> str:
    """Return the set of possible classes if there is one, else the classes that follow."""
    if labels.possible is not None:
        return "{" + ", ".join(map(printable, labels.possible)) + "}"
    following = labels.ranking if labels.label is None else labels.ranking[1:]
    return ", ".join(f"{printable(name)} {probability:.3f}" for name, probability in following)


def _number(probability: float) -> str:
    return f"{probability:.6g}"

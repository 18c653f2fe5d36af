"""How good an exported bundle is on labelled images; classes are matched by their names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int64

from ensembles.bundle import Bundle
from ensembles.classification import ClassificationDetail, describe_classes
from ensembles.metrics import METRICS
from ensembles.report import Figures, measure
from search.data.listing import GIVEN, Listing, shortened
from search.errors import ConfigError, DataError, NothingToDoError
from search.words import suggestion

Split = Literal["test", "val", "train", "all"]
Document: TypeAlias = dict[str, Any]

SCHEMA = 1
_LOSSES = frozenset(name for name, metric in METRICS.items() if not metric.higher_is_better)
_MAX_CLASSES_IN_MATRIX = 15
_N_CONFUSIONS = 10


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A limit that a metric must keep: from below, or from above if lower is better."""

    metric: str
    limit: float

    def is_missed_by(self, value: float | None) -> bool:
        """Tell whether a value is on the wrong side; one that is not defined is."""
        if value is None:
            return True
        return value > self.limit if self.metric in _LOSSES else value < self.limit


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The images of a data set to evaluate on."""

    split: Split
    rows: Int64[np.ndarray, " images"]
    """Places in the listing."""
    labels: Int64[np.ndarray, " images"]
    """Places among the bundle's classes."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All figures of one bundle on one set of images."""

    bundle: str
    data: str
    split: Split
    n_unreadable: int
    figures: Figures
    detail: ClassificationDetail

    def to_json(self) -> Document:
        """Return JSON values."""
        return {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "data": self.data,
            "split": self.split,
            "n_unreadable": self.n_unreadable,
            **asdict(self.figures),
            "averages": averages(self.detail),
            **self.detail.to_json(),
        }


def parse_bars(texts: Sequence[str]) -> tuple[Bar, ...]:
    """Read bars such as `accuracy=0.95`.

    Raises:
        ConfigError: The metric is not known or the limit is no number.
    """
    return tuple(_parse_bar(text) for text in texts)


def select_images(listing: Listing, split: Split | None, class_names: Sequence[str]) -> Selection:
    """Choose the images to evaluate on.

    Args:
        listing: The data set.
        split: Which of its own splits; None: `test` if it has one, else all images.
        class_names: Of the bundle.

    Returns:
        Rows of the listing, with labels in the order of the bundle's classes.

    Raises:
        DataError: The data set has no such split, or has classes that the bundle does not know.
    """
    splits = tuple(GIVEN[code] for code in np.unique(listing.given))
    if split is None:
        split = "test" if "test" in splits else "all"
    if split == "all":
        rows = np.arange(len(listing.names))
    elif split in splits:
        rows = np.flatnonzero(listing.given == GIVEN.index(split))
    else:
        had = shortened([name for name in splits if name != "none"]) or "no splits"
        raise DataError(f"{listing.source}: no split {split!r}; it has {had}. Try --split all.")
    present = [listing.class_names[label] for label in np.unique(listing.labels[rows])]
    places = {name: place for place, name in enumerate(class_names)}
    strangers = [name for name in present if name not in places]
    if strangers:
        raise DataError(
            f"{listing.source}: the bundle does not know the classes {shortened(strangers)}; "
            f"it knows {shortened(list(class_names))}."
        )
    numbers = np.array([places.get(name, -1) for name in listing.class_names])
    return Selection(split=split, rows=rows, labels=numbers[listing.labels[rows]])


def evaluate(
    bundle: Bundle,
    listing: Listing,
    selection: Selection,
    *,
    complain: Callable[[str, str], None],
    count: Callable[[int], None],
    batch_size: int | None = None,
) -> Evaluation:
    """Run a bundle over labelled images.

    Args:
        bundle: What to evaluate.
        listing: The data set.
        selection: Which of its images.
        complain: Called with name and reason of each picture that cannot be read; it is left out.
        count: Called for each picture that is done.
        batch_size: Pictures to run at once; None: by their size.

    Returns:
        All figures.

    Raises:
        NothingToDoError: No picture could be read.
    """
    pictures = (listing.load(int(row)) for row in selection.rows)
    rows, labels = [], []
    predictions = bundle.predict_each(pictures, batch_size=batch_size)
    for each, row, label in zip(predictions, selection.rows, selection.labels, strict=True):
        if each.log_probabilities is None:
            complain(str(listing.names[row]), each.problem)
        else:
            rows.append(each.log_probabilities)
            labels.append(label)
        count(1)
    if not rows:
        raise NothingToDoError(f"{listing.source}: no picture could be read.")
    log_probabilities, known = np.stack(rows), np.array(labels)
    return Evaluation(
        bundle=str(bundle.folder),
        data=listing.source,
        split=selection.split,
        n_unreadable=len(selection.rows) - len(rows),
        figures=measure(log_probabilities, known, bundle.decision),
        detail=describe_classes(log_probabilities, known, bundle.classes, bundle.decision),
    )


def find_missed(evaluation: Evaluation, bars: Sequence[Bar]) -> list[str]:
    """Return one line for each bar that is missed."""
    values: Mapping[str, float | None] = {
        **asdict(evaluation.figures),
        "roc_auc": evaluation.detail.roc_auc,
    }
    return [
        f"{bar.metric} is {'not defined' if values[bar.metric] is None else values[bar.metric]}, "
        f"the bar is {bar.limit:g}"
        for bar in bars
        if bar.is_missed_by(values[bar.metric])
    ]


def averages(detail: ClassificationDetail) -> Mapping[str, Mapping[str, float]]:
    """Average precision, recall and F1: over classes, and over images.

    `macro` takes the classes that occur or were predicted, `weighted` counts each by its images.
    """
    seen = [each for each in detail.classes if each.n_images or each.n_predicted]
    weights = {
        "macro": [1.0] * len(seen),
        "weighted": [float(each.n_images) for each in seen],
    }
    return {
        name: {
            score: float(np.average([getattr(each, score) for each in seen], weights=weight))
            for score in ("precision", "recall", "f1")
        }
        for name, weight in weights.items()
    }


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """Return the figures as lines for people."""
    figures, detail = evaluation.figures, evaluation.detail
    low, high = figures.accuracy_interval.low, figures.accuracy_interval.high
    area = "not defined" if detail.roc_auc is None else f"{detail.roc_auc:.4f}"
    source = f"{evaluation.bundle} on {evaluation.data}, split {evaluation.split}"
    return [
        f"{source}: {figures.n_images:,} images",
        "",
        f"accuracy           {figures.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%})",
        f"balanced accuracy  {figures.balanced_accuracy:.2%}",
        f"macro F1           {figures.macro_f1:.4f}",
        f"log-loss           {figures.log_loss:.4f}",
        f"Brier score        {figures.brier:.4f}",
        f"calibration error  {figures.expected_calibration_error:.2%}",
        f"ROC-AUC            {area}",
        "",
        *_class_table(detail),
        "",
        *_confusions(detail),
    ]


def _class_table(detail: ClassificationDetail) -> list[str]:
    scores = [
        (each.name, each.precision, each.recall, each.f1, each.n_images) for each in detail.classes
    ]
    n_images = sum(each.n_images for each in detail.classes)
    scores += [
        (f"({name} mean)", each["precision"], each["recall"], each["f1"], n_images)
        for name, each in averages(detail).items()
    ]
    rows = [["class", "precision", "recall", "F1", "images"]]
    rows += [[name, *(f"{score:.4f}" for score in row), f"{n:,}"] for name, *row, n in scores]
    return _aligned(rows)


def _confusions(detail: ClassificationDetail) -> list[str]:
    names = [each.name for each in detail.classes]
    if len(names) <= _MAX_CLASSES_IN_MATRIX:
        rows = [["true class", *names]]
        rows += [
            [name, *map(str, counts)] for name, counts in zip(names, detail.confusion, strict=True)
        ]
        return ["confusion matrix (columns: predicted class)", *_aligned(rows)]
    cells = [
        (count, true, predicted)
        for true, counts in enumerate(detail.confusion)
        for predicted, count in enumerate(counts)
        if count and true != predicted
    ]
    cells.sort(key=lambda cell: (-cell[0], *cell[1:]))
    rows = [["true class", "predicted", "images"]]
    rows += [
        [names[true], names[predicted], str(count)]
        for count, true, predicted in cells[:_N_CONFUSIONS]
    ]
    return ["most frequent confusions", *_aligned(rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad columns to the same width: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _parse_bar(text: str) -> Bar:
    metric, _, limit = text.partition("=")
    known = [*METRICS, "roc_auc"]
    if metric not in known:
        raise ConfigError(f"--fail-under {text}: unknown metric{suggestion(metric, known)}")
    try:
        return Bar(metric=metric, limit=float(limit))
    except ValueError:
        raise ConfigError(
            f"--fail-under {text}: must be METRIC=NUMBER, such as accuracy=0.95."
        ) from None

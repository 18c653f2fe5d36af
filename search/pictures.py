"""Small pictures of one trial, drawn as SVG: no plotting library in the training processes.

They are narrow, since the dashboard shows them 200 pixels wide. A file is a few kB whatever the
number of classes: the cells of a matrix are the pixels of one embedded image, and only what can
be read is written beside it.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

_WIDTH = 320
_MARGIN = 66
_MAX_NAMED_CLASSES = 15
_MAX_NAME_LETTERS = 8
_N_WORST = 6
_PANEL_HEIGHT = 120
_MAX_DOTS = 12
_GREEN = (38, 139, 70)
_RED = (203, 65, 50)
_FAINTEST = 0.15
"""Of a cell with a single image, so that it is seen among a thousand."""


def confusion_svg(counts: Int[np.ndarray, "true predicted"], class_names: Sequence[str]) -> str:
    """Draw a confusion matrix; a row is a true class, the shade of a cell its share of the row.

    Args:
        counts: Images of each true class (row) that were given each class (column).
        class_names: In the order of rows and columns; up to 15 are written, else the most
            frequent confusions are.
    """
    n_classes = len(class_names)
    named = n_classes <= _MAX_NAMED_CLASSES
    left = _MARGIN if named else 10
    side = _WIDTH - left - 10
    n_right, n_images = int(counts.trace()), max(1, int(counts.sum()))
    title = f"{n_right} of {n_images} right (a row: a true class)"
    square = f'x="{left}" y="26" width="{side}" height="{side}"'
    style = 'preserveAspectRatio="none" style="image-rendering:pixelated"'
    parts = [
        _text(_WIDTH / 2, 16, title, "middle", 13),
        f'<image {square} {style} href="{_png(_shade(counts))}"/>',
        f'<rect {square} fill="none" stroke="#888"/>',
    ]
    if named:
        parts += _name_cells(counts, class_names, left, side / n_classes)
        return _svg(parts, height=26 + side + 22)
    worst = _worst_confusions(counts, class_names)
    parts += [_text(left, 44 + side + 16 * index, line) for index, line in enumerate(worst)]
    return _svg(parts, height=36 + side + 16 * len(worst))


def curves_svg(history: Sequence[Mapping[str, float]], best_round: int) -> str:
    """Draw losses and accuracy over the rounds of a trial.

    Args:
        history: What was measured after each round: `train_loss`, `log_loss`, `accuracy`.
        best_round: Number of the round that was kept; it is marked.
    """
    train = [row["train_loss"] for row in history]
    stop = [row["log_loss"] for row in history]
    accuracy = [100 * row["accuracy"] for row in history]
    top, bottom = max(*train, *stop), min(accuracy)
    place = (best_round - 1) / max(len(history) - 1, 1)
    x = _MARGIN + place * (_WIDTH - _MARGIN - 14)
    height = 2 * _PANEL_HEIGHT + 104
    parts = [
        f'<path d="M{x:.1f},30V{height - 26}" stroke="#bbb" stroke-dasharray="3 3"/>',
        *_panel(30, (0.0, top), {"#888888": train, "#1f77b4": stop}, "{:.2f}"),
        _text(_MARGIN, 20, "training loss", size=13, color="#888888"),
        _text(_WIDTH - 14, 20, "log-loss (stop role)", "end", 13, "#1f77b4"),
        *_panel(_PANEL_HEIGHT + 78, (bottom, 100.0), {"#268b46": accuracy}, "{:.0f} %"),
        _text(_MARGIN, _PANEL_HEIGHT + 68, "accuracy (stop role)", size=13, color="#268b46"),
        _text(_MARGIN, height - 8, "round 1"),
        _text((_MARGIN + _WIDTH - 14) / 2, height - 8, f"best: {best_round}", "middle"),
        _text(_WIDTH - 14, height - 8, f"round {len(history)}", "end"),
    ]
    return _svg(parts, height=height)


def _shade(counts: Int[np.ndarray, "true predicted"]) -> UInt8[np.ndarray, "true predicted 3"]:
    """Return a pixel for each cell: green for what is right, red for what is wrong."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    opacity = np.where(counts > 0, _FAINTEST + (1 - _FAINTEST) * shares, 0.0)[..., None]
    right = np.eye(len(counts), dtype=bool)[..., None]
    color = np.where(right, np.array(_GREEN), np.array(_RED))
    return np.asarray(np.rint(255 + opacity * (color - 255)), dtype=np.uint8)


def _png(pixels: UInt8[np.ndarray, "rows columns 3"]) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _name_cells(
    counts: Int[np.ndarray, "true predicted"], class_names: Sequence[str], left: float, cell: float
) -> list[str]:
    """Write the names of the classes, and the number into each cell that has one."""
    size = int(max(7, min(13, cell / 2)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    foot = 26 + len(class_names) * cell + 14
    n_letters = max(1, int(cell / (0.7 * size)))
    parts, numbers = [], []
    for row, name in enumerate(class_names):
        y = 26 + (row + 0.5) * cell + size / 3
        parts.append(_text(left - 5, y, _shortened(name, _MAX_NAME_LETTERS), "end", size))
        parts.append(_text(left + (row + 0.5) * cell, foot, name[:n_letters], "middle", size))
        for column in np.flatnonzero(counts[row]):
            light = ' fill="#fff"' if shares[row, column] > 0.6 else ""
            x = left + (column + 0.5) * cell
            numbers.append(f'<text x="{x:.0f}" y="{y:.0f}"{light}>{counts[row, column]}</text>')
    return [*parts, f'<g text-anchor="middle" font-size="{size}">{"".join(numbers)}</g>']


def _worst_confusions(
    counts: Int[np.ndarray, "true predicted"], class_names: Sequence[str]
) -> list[str]:
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts).ravel()
    cells = np.argsort(-wrong, kind="stable")[:_N_WORST]
    return [
        f"{wrong[cell]} x {_shortened(class_names[cell // len(counts)], 24)} "
        f"taken for {_shortened(class_names[cell % len(counts)], 24)}"
        for cell in cells
        if wrong[cell]
    ]


def _panel(
    top: float, limits: tuple[float, float], lines: Mapping[str, Sequence[float]], ticks: str
) -> list[str]:
    """Draw lines, by their color, over a grid of three levels."""
    low, high = limits
    span = (high - low) or 1.0
    width = _WIDTH - _MARGIN - 14
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = top + _PANEL_HEIGHT * (1 - share)
        parts.append(f'<path d="M{_MARGIN},{y:.1f}h{width}" stroke="#ddd"/>')
        parts.append(_text(_MARGIN - 6, y + 4, ticks.format(low + share * span), "end"))
    for color, values in lines.items():
        points = [
            (
                _MARGIN + width * index / max(len(values) - 1, 1),
                top + _PANEL_HEIGHT * (1 - (value - low) / span),
            )
            for index, value in enumerate(values)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        if len(points) <= _MAX_DOTS:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in points
            ]
    return parts


def _shortened(name: str, n_letters: int) -> str:
    return name if len(name) <= n_letters else f"{name[: n_letters - 1]}…"


def _svg(parts: Sequence[str], *, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
        f'width="{_WIDTH}" height="{height:.0f}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>'
    )


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: int = 12, color: str = "#222222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{color}">{escape(text)}</text>'
    )

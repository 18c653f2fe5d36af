"""Small pictures of one trial, drawn as SVG: no plotting library in the training processes."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Int

_SIZE = 420
_MARGIN = 70
_MAX_NAMED_CLASSES = 25


def confusion_svg(counts: Int[np.ndarray, "true predicted"], class_names: Sequence[str]) -> str:
    """Draw a confusion matrix; a row is a true class, its cells are shares of that row."""
    n_classes = len(class_names)
    cell = (_SIZE - _MARGIN) / n_classes
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = [_text(_SIZE / 2, 14, "true class (rows) and predicted class, stop role", "middle")]
    named = n_classes <= _MAX_NAMED_CLASSES
    for row in range(n_classes):
        y = 24 + row * cell
        if named:
            parts.append(_text(_MARGIN - 4, y + cell / 2 + 4, class_names[row][:10], "end"))
        for column in np.flatnonzero(counts[row]) if not named else range(n_classes):
            share, x = float(shares[row, column]), _MARGIN + column * cell
            color = "38,139,70" if row == column else "203,65,50"
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
                f'fill="rgba({color},{share:.2f})" stroke="#ddd" stroke-width="0.5"/>'
            )
            if named and counts[row, column]:
                middle = x + cell / 2
                parts.append(_text(middle, y + cell / 2 + 4, str(counts[row, column]), "middle"))
    return _svg(parts, height=24 + n_classes * cell + 10)


def curves_svg(history: Sequence[Mapping[str, float]]) -> str:
    """Draw train loss and log-loss of the stop role over the rounds, and the accuracy."""
    rounds = [row["round"] for row in history]
    parts = [_text(_SIZE / 2, 14, "round by round", "middle")]
    losses = [(row["train_loss"], row["log_loss"]) for row in history]
    top = max(max(pair) for pair in losses) or 1.0
    lines = (
        ("train loss", "#888888", [pair[0] / top for pair in losses]),
        ("log-loss (stop)", "#1f77b4", [pair[1] / top for pair in losses]),
        ("accuracy (stop)", "#2ca02c", [row["accuracy"] for row in history]),
    )
    width, height = _SIZE - _MARGIN - 10, 220
    for share in (0.0, 0.5, 1.0):
        y = 30 + height * (1 - share)
        parts.append(f'<path d="M{_MARGIN},{y} h{width}" stroke="#ddd" fill="none"/>')
        parts.append(
            _text(_MARGIN - 4, y + 4, f"{share * top:.2f} | {100 * share:.0f} %", "end", 9)
        )
    span = max(rounds[-1] - rounds[0], 1)
    for index, (name, color, values) in enumerate(lines):
        points = " ".join(
            f"{_MARGIN + width * (number - rounds[0]) / span:.1f},{30 + height * (1 - value):.1f}"
            for number, value in zip(rounds, values, strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        )
        parts.append(_text(_MARGIN + index * 115, 275, name, "start", 11, color))
    return _svg(parts, height=285)


def _svg(parts: Sequence[str], *, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE} {height:.0f}" '
        f'width="{_SIZE}" height="{height:.0f}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>'
    )


def _text(
    x: float, y: float, text: str, anchor: str, size: int = 10, color: str = "#222222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{color}">{escape(text)}</text>'
    )

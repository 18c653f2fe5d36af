"""How a trial is asked, and when it is not: what has one legal value is fixed."""

from decimal import Decimal
from typing import TypeVar

from spaces.trial import Trial, Value

Choice = TypeVar("Choice", bound=Value)


def ask_choice(trial: Trial, name: str, choices: tuple[Choice, ...]) -> Choice:
    """Ask for one of the choices."""
    if len(choices) == 1:
        return choices[0]
    return choices[choices.index(trial.suggest_categorical(name, choices))]


def ask_whole(trial: Trial, name: str, limits: tuple[int, int], *, step: int = 1) -> int:
    """Ask for a whole number; with a step that does not fit the limits, for any."""
    low, high = limits
    if low == high:
        return low
    return trial.suggest_int(name, low, high, step=1 if (high - low) % step else step)


def ask_number(trial: Trial, name: str, limits: tuple[float, float], *, step: float) -> float:
    """Ask for a number on a grid; where the grid does not fit the limits, for any between."""
    low, high = limits
    if low == high:
        return low
    # In decimals, as Optuna does it: in binary, 0.3 is not a multiple of 0.05.
    fits = (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) == 0
    return trial.suggest_float(name, low, high, step=step if fits else None)


def ask_factor(trial: Trial, name: str, limits: tuple[float, float]) -> float:
    """Ask for a number on a logarithmic scale."""
    low, high = limits
    return low if low == high else trial.suggest_float(name, low, high, log=True)

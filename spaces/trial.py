"""What a space may ask of a trial."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

Value: TypeAlias = bool | int | float | str


@runtime_checkable
class Trial(Protocol):
    """The three methods of `optuna.Trial` that a space calls; Optuna itself is not needed."""

    def suggest_categorical(self, name: str, choices: Sequence[Value | None]) -> object:
        """Choose one of `choices`."""
        ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Choose a whole number from `low` to `high`, both included."""
        ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Choose a number from `low` to `high`, both included."""
        ...

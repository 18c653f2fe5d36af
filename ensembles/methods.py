"""The names of the methods; apart from the mathematics, so that flags need no NumPy."""

from typing import Literal

Method = Literal[
    "single",
    "soup",
    "vote",
    "weighted_vote",
    "soft",
    "logit",
    "weighted",
    "simplex",
    "greedy",
    "greedy_accuracy",
    "bagged_greedy",
    "llp",
    "stack",
    "seeds",
]

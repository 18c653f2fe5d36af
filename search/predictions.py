"""What each trial leaves behind: predictions, weights, and the scores of every round."""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from search.errors import SearchError
from search.paths import StudyPaths, TrialPaths, write_whole

RoleName = TypeVar("RoleName", bound=str)


def write_predictions(
    paths: TrialPaths, role: str, log_probabilities: Float[np.ndarray, "images classes"]
) -> None:
    """Keep a trial's log-probabilities for the images of one role, as float32.

    Half precision would do for fitting (the log-loss of 10,000 images moves in the sixth digit),
    but then an exported ensemble could not be held to what its study stored.
    """
    content = io.BytesIO()
    np.save(content, log_probabilities.astype(np.float32), allow_pickle=False)
    write_whole(paths.predictions(role), content.getbuffer())


def read_predictions(
    paths: StudyPaths, role: str, trial_numbers: Sequence[int]
) -> Float[np.ndarray, "trials images classes"]:
    """Gather the log-probabilities of several trials for the images of one role.

    Raises:
        SearchError: A file is not there or not whole.
    """
    return gather_predictions([paths.trial(number) for number in trial_numbers], role)


def gather_predictions(
    folders: Sequence[TrialPaths], role: str
) -> Float[np.ndarray, "folders images classes"]:
    """Gather the log-probabilities for the images of one role from several folders.

    Raises:
        SearchError: A file is not there or not whole.
    """
    arrays = []
    for folder in folders:
        path = folder.predictions(role)
        try:
            arrays.append(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise SearchError(f"{path}: predictions cannot be read: {error}.") from error
    return np.stack(arrays)


def has_predictions(paths: TrialPaths, roles: Collection[str] = ("stop", "ens", "test")) -> bool:
    """Tell whether a trial left predictions for every role."""
    return all(paths.predictions(role).is_file() for role in roles)


def write_weights(paths: TrialPaths, weights: Mapping[str, Tensor]) -> None:
    """Keep a trial's weights as safetensors."""
    write_whole(
        paths.weights, save({name: tensor.contiguous() for name, tensor in weights.items()})
    )


def read_weights(paths: TrialPaths) -> dict[str, Tensor]:
    """Read a trial's weights.

    Raises:
        SearchError: The trial's weights were not kept.
    """
    if not paths.weights.is_file():
        raise SearchError(f"{paths.weights}: the weights of this trial were not kept.")
    return load_file(paths.weights)


def write_network(
    paths: TrialPaths,
    weights: Mapping[str, Tensor],
    predicted: Mapping[RoleName, Float[np.ndarray, "images classes"]],
) -> None:
    """Keep the weights of a network, and what it predicts for each role."""
    for role, log_probabilities in predicted.items():
        write_predictions(paths, role, log_probabilities)
    write_weights(paths, weights)


def write_history(paths: TrialPaths, history: Sequence[Mapping[str, float]]) -> None:
    """Keep the scores of every round."""
    write_whole(paths.history, json.dumps(list(history)).encode())

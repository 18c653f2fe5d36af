"""Room on the disk for a study: what it will need, and waiting until there is enough.

A worker looks before each trial whether what a trial leaves behind has room, and some more, so
that the database never meets a full disk; should it or a file meet one all the same, the trial
goes back into the queue as one that was interrupted, and the worker waits. Nothing of a pause is
written down, since there is no room for it: a lock that the waiting workers share tells of it.
"""

import fcntl
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from optuna.trial import FrozenTrial

from search.disk import can_write, format_bytes, free_bytes
from search.paths import StudyPaths
from search.record import StudyRecord
from search.retention import kept_trials
from search.trials import FINISHED

logger = logging.getLogger(__name__)

RESERVE_BYTES = 16_000_000
"""That stay free besides: the write-ahead log of many workers takes some megabytes."""
SECONDS_BETWEEN_LOOKS = 1.0
# Rows of the database, history, two pictures, and what each file wastes of its last block.
_OTHER_BYTES = 64_000
# Network, best weights, average, and two moments of each weight.
_WEIGHTS_IN_A_CHECKPOINT = 6


def needed_bytes(record: StudyRecord, trials: Sequence[FrozenTrial]) -> int:
    """Return how much must be free for a trial to begin.

    Args:
        record: The study.
        trials: Its trials; the largest network among them is taken for the next one's.
    """
    largest = max(_parameters(trials), default=0)
    written = _bytes_left_by_a_trial(record) + 4 * largest * (1 + _WEIGHTS_IN_A_CHECKPOINT)
    return written + RESERVE_BYTES


def forecast_bytes(
    record: StudyRecord, trials: Sequence[FrozenTrial], *, n_workers: int, n_parameters: int
) -> int:
    """Estimate how much a study will still write until it has all its trials.

    Args:
        record: The study.
        trials: Its trials so far.
        n_workers: How many run at a time.
        n_parameters: Of a usual network, where no trial has ended yet.
    """
    config = record.config
    n_left = max(0, config.trials - sum(trial.state in FINISHED for trial in trials))
    n_to_keep = max(0, min(config.keep, config.trials) - len(kept_trials(trials, config.keep)))
    usual = 4 * int(median(_parameters(trials) or [n_parameters]))
    n_weights = min(n_left, n_to_keep) + _WEIGHTS_IN_A_CHECKPOINT * min(n_left, n_workers)
    return n_left * _bytes_left_by_a_trial(record) + n_weights * usual


def wait_for_room(
    paths: StudyPaths, n_bytes: int, stopping: Callable[[], bool], *, has_failed: bool = False
) -> bool:
    """Wait until so many bytes are free on the disk of a study.

    Args:
        paths: Files of the study.
        n_bytes: What is needed.
        stopping: Whether to wait no longer.
        has_failed: Whether something could not be written just now: then there is a rest in any
            case, and writing is tried instead of believing what the disk calls free.

    Returns:
        Whether there is room; False when it was told to stop.
    """
    if not has_failed and free_bytes(paths.folder) >= n_bytes:
        return True
    logger.warning("%s", pause_sentence(paths, n_bytes))
    with _shown_pause(paths):
        while not stopping():
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if free_bytes(paths.folder) >= n_bytes and can_write(paths.folder, n_bytes):
                logger.info("there is room on the disk again")
                return True
    return False


def is_paused(paths: StudyPaths) -> bool:
    """Tell whether a worker of the study waits for room, or one of its ordered trainings."""
    nested = paths.folder.glob(f"*/{paths.pause_lock.name}")
    return any(_is_shared(lock) for lock in (paths.pause_lock, *nested))


def _is_shared(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no worker has waited yet
    return False


def pause_sentence(paths: StudyPaths, n_bytes: int) -> str:
    """Say why a study waits, and what ends it."""
    return (
        f"paused, no room on the disk of {paths.folder}: {format_bytes(free_bytes(paths.folder))} "
        f"free, {format_bytes(n_bytes)} needed; `python -m search clean` frees what no study "
        "needs, and the search goes on by itself"
    )


def _parameters(trials: Sequence[FrozenTrial]) -> list[int]:
    return [trial.user_attrs["parameters"] for trial in trials if "parameters" in trial.user_attrs]


def _bytes_left_by_a_trial(record: StudyRecord) -> int:
    """Return what every trial leaves behind: its predictions, and small things."""
    sizes = record.role_sizes
    n_images = sum(sizes.get(role, 0) for role in ("stop", "ens", "test"))
    return 4 * n_images * len(record.class_names) + _OTHER_BYTES


@contextmanager
def _shown_pause(paths: StudyPaths) -> Iterator[None]:
    """Share the lock by which the supervisor knows of a pause; it ends with its process."""
    try:
        file = paths.pause_lock.open("ab")
    except OSError:  # it is made when a run begins; without it nobody is told, no more
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield

"""Signs of life of a trial, from a thread of its own: training never waits for them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import optuna

from search.errors import SearchError
from search.orphans import BEAT_SECONDS
from search.storage import backend_of, is_ours

logger = logging.getLogger(__name__)


@contextmanager
def beating(
    study: optuna.Study, trial: optuna.Trial, *, seconds: float = BEAT_SECONDS
) -> Iterator[Callable[[], bool]]:
    """Give signs of life of a trial of this process until the block ends.

    The first one comes after `seconds`: who is on the same host needs none, and a short trial is
    over before.

    Args:
        study: The study.
        trial: A running trial.
        seconds: Between two signs.

    Yields:
        What tells whether the trial has been taken away: a host that was suspended, or cut off
        from the storage for long, finds its trial running elsewhere.
    """
    ended, lost = Event(), Event()
    thread = Thread(target=_beat, args=(study, trial, seconds, ended, lost), daemon=True)
    thread.start()
    try:
        yield lost.is_set
    finally:
        ended.set()  # not joined: it may wait for a storage that is out of reach


def _beat(
    study: optuna.Study, trial: optuna.Trial, seconds: float, ended: Event, lost: Event
) -> None:
    backend = backend_of(study)
    while not ended.wait(seconds):
        try:
            backend.record_heartbeat(trial._trial_id)
            if not ended.is_set() and not is_ours(study, trial):
                lost.set()
        except (SearchError, KeyError) as error:  # the next one may get through
            logger.warning("trial %d: no sign of life could be given: %s", trial.number, error)
    backend.remove_session()  # this thread's own

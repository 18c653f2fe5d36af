"""One worker process, until it may import torch: what it is told, its environment, its signals."""

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from search.clock import leave_out_stops
from search.devices import Slot
from search.errors import in_one_line
from search.logs import log_to_file
from search.panel import Panel
from search.paths import StudyPaths
from search.schedule import Deadline

logger = logging.getLogger(__name__)

SECONDS_WITHOUT_PARENT = 20.0
"""That a worker has to hand its trial back when its supervisor is gone."""


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What a worker is told when it starts; nothing in it is open, so any start method will do."""

    folder: Path
    """Folder of the study."""
    slot: Slot
    environment: dict[str, str]
    """Variables that choose the device; worked out by the supervisor, whose own are untouched."""
    n_trials: int
    deadline: Deadline | None
    images: Path | None = None
    """Folder of the decoded images on this host; None: where the study has them."""


def work(order: WorkerOrder, stop: Event, panel: Panel) -> None:
    """Run trials until the study has enough, time is up, or `stop` is set.

    The devices that the process may see are set before anything can touch CUDA; so torch is
    imported here and not above.

    Args:
        order: Study and slot.
        stop: Set by the supervisor; the running trial is handed back.
        panel: Where the supervisor looks for signs of life.
    """
    os.environ.update(order.environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor gets it too, and sets `stop`
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
    leave_out_stops()
    paths = StudyPaths(order.folder)
    try:
        log_to_file(paths.log)
    except FileNotFoundError:
        sys.exit(1)  # the study has just been deleted, which the supervisor finds out and tells
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_without, args=(parent,), daemon=True).start()

    def stopping() -> bool:
        panel.beat()  # the training asks before every step
        return bool(terminated) or stop.is_set() or (parent is not None and not parent.is_alive())

    try:
        # Here and not above: it imports torch, which must not come before the environment.
        from search.loop import run_trials  # noqa: PLC0415

        run_trials(
            paths,
            order.slot,
            stopping,
            n_trials=order.n_trials,
            deadline=order.deadline,
            panel=panel,
            images=order.images,
        )
    except Exception as error:
        logger.exception("slot %d: the worker ends", order.slot.number)
        panel.tell(in_one_line(error))
        sys.exit(1)


def _end_without(parent: BaseProcess) -> None:
    """End this process when its supervisor is gone, even in the middle of a step that hangs.

    The next run proves the trial to be an orphan and goes on from its checkpoint.
    """
    parent.join()
    time.sleep(SECONDS_WITHOUT_PARENT)
    os._exit(1)

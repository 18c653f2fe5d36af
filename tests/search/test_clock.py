import os
import signal
import time

import pytest

from search.clock import leave_out_stops, working_seconds
from search.schedule import Deadline


def test_the_time_in_which_a_process_is_stopped_is_left_out() -> None:
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        leave_out_stops()
        began, worked_before = time.monotonic(), working_seconds()
        worked = 0.0
        while time.monotonic() - began < 1.0:
            worked = working_seconds() - worked_before
        os.write(writes, str(worked).encode())
        os._exit(0)
    time.sleep(0.2)
    os.kill(child, signal.SIGSTOP)
    time.sleep(1.2)
    os.kill(child, signal.SIGCONT)

    worked = float(os.read(reads, 100))
    os.waitpid(child, 0)

    # It looked at the clock until it was stopped, and then found a second and more gone by.
    assert 0.0 < worked < 0.9


def test_a_clock_that_somebody_sets_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(at=time.monotonic() + 100, n_trials=1, n_workers=1)

    for told in (0.0, 1e12):
        monkeypatch.setattr(time, "time", lambda told=told: told)

        assert deadline.left() == pytest.approx(100, abs=5)
        assert deadline.overdue() == 0

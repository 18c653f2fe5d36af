import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from runs import until

from search.owners import Owner, owner_of, this_process


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def owner_with(pid: int) -> Owner:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return replace(this_process(), pid=pid, started=int(fields[19]))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def test_this_process_is_here_and_lives() -> None:
    me = this_process()

    assert me.pid == os.getpid()
    assert me.is_here
    assert not me.is_gone()
    assert owner_of({"owner": me.to_json()}) == me


def test_a_process_is_gone_when_it_was_killed(sleeper: "subprocess.Popen[bytes]") -> None:
    owner = owner_with(sleeper.pid)
    assert not owner.is_gone()

    sleeper.kill()
    until(lambda: state_of(sleeper.pid) == "Z", seconds=10)

    assert owner.is_gone()  # a zombie: nobody has asked for its exit code yet

    sleeper.wait()

    assert owner.is_gone()


def test_a_suspended_process_is_not_gone(sleeper: "subprocess.Popen[bytes]") -> None:
    owner = owner_with(sleeper.pid)

    sleeper.send_signal(signal.SIGSTOP)
    until(lambda: state_of(sleeper.pid) == "T", seconds=10)

    assert not owner.is_gone()


def test_a_number_that_was_given_again_is_another_process(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    owner = owner_with(sleeper.pid)

    assert replace(owner, started=owner.started - 1).is_gone()


def test_nothing_is_known_here_of_another_boot_or_container() -> None:
    me = this_process()

    for other in (replace(me, boot="another"), replace(me, namespace=1), replace(me, boot="")):
        elsewhere = replace(other, pid=2**22 - 1)
        assert not elsewhere.is_here
        assert not elsewhere.is_gone()


def test_another_python_has_another_start() -> None:
    code = "from search.owners import this_process; print(this_process().started)"
    started = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert int(started.stdout) > this_process().started


@pytest.mark.parametrize("stored", [{}, {"owner": 12}, {"owner": {"pid": 12}}])
def test_what_is_no_owner_is_none(stored: dict[str, object]) -> None:
    assert owner_of(stored) is None

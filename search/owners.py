"""Which process runs a trial, and how another one can prove that it is gone.

A process is known by its host's boot, its namespace of process numbers (a container has its own),
its number and when it started: a number alone is given again. Of a process of the same boot and
namespace, `/proc` knows whether it lives; of any other, nothing can be known from here.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ATTRIBUTE = "owner"
"""The trial's user attribute."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that runs a trial."""

    host: str
    """Its name, for people."""
    boot: str
    """Changes whenever the host starts; empty where it cannot be known."""
    namespace: int
    pid: int
    started: int
    """When the process started, in the kernel's ticks since the boot."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def shares_host(self, other: "Owner") -> bool:
        """Tell whether two processes have the same host, as far as that is known."""
        mine = (self.host, self.boot, self.namespace)
        return mine == (other.host, other.boot, other.namespace)

    @property
    def is_here(self) -> bool:
        """Whether it shares boot and process numbers with this process."""
        me = this_process()
        return bool(self.boot) and (self.boot, self.namespace) == (me.boot, me.namespace)

    def is_gone(self) -> bool:
        """Tell whether the process is proved to be gone; only where it `is_here`."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # there is one, of another user
            pass
        state, started = _stat(self.pid)
        return state in ("Z", "X") or started not in (0, self.started)


def this_process() -> Owner:
    """Return the process that calls."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux: nothing can be proved, heartbeats decide
        boot, namespace = "", 0
    pid = os.getpid()
    _, started = _stat(pid)
    return Owner(
        host=socket.gethostname(), boot=boot, namespace=namespace, pid=pid, started=started
    )


def is_owned(attributes: Mapping[str, Any]) -> bool:
    """Tell whether a process, known or not, has said that it runs a trial.

    A trial that was handed back has none as its owner. An older version wrote a number only.
    """
    return attributes.get(ATTRIBUTE) is not None or "process" in attributes


def owner_of(attributes: Mapping[str, Any]) -> Owner | None:
    """Read the owner from a trial's user attributes; None if it has none that can be read."""
    try:
        return Owner(**attributes[ATTRIBUTE])
    except (KeyError, TypeError):
        return None


def _stat(pid: int) -> tuple[str, int]:
    """Return state and start of a process, empty and 0 where they cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", 0
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces
    return fields[0], int(fields[19])

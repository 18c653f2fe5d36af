"""GPUs that are not there: all of their assignment is real, the CPU computes."""

import os
from dataclasses import dataclass
from pathlib import Path

from search.devices import Slot


@dataclass(frozen=True, kw_only=True)
class PretendedSlot(Slot):
    """A slot on a GPU whose worker notes what it sees, and computes on the CPU."""

    notes: Path

    @property
    def torch_device(self) -> str:
        note = self.notes / f"{self.number}-{os.getpid()}"
        note.write_text(os.environ["CUDA_VISIBLE_DEVICES"], encoding="utf-8")
        return "cpu"


def read_notes(notes: Path) -> dict[int, list[str]]:
    """Return which GPUs each worker of each slot saw, by the number of the slot."""
    found: dict[int, list[str]] = {}
    for note in sorted(notes.iterdir()):
        number = int(note.name.split("-")[0])
        found.setdefault(number, []).append(note.read_text(encoding="utf-8"))
    return found

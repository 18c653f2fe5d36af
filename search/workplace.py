"""Opens what a worker keeps open: images, roles, device, precision."""

from collections.abc import Callable

import torch

from search.data.roles import Role, read_roles
from search.data.store import open_store
from search.devices import Slot
from search.objective import Workplace
from search.paths import StudyPaths
from search.process import choose_autocast_dtype, prepare_process
from search.record import StudyRecord
from search.training import TrainingImages

_JUDGED: tuple[Role, ...] = ("stop", "ens", "test")


def open_workplace(
    paths: StudyPaths, record: StudyRecord, slot: Slot, stopping: Callable[[], bool]
) -> Workplace:
    """Prepare this process and open the images of a study.

    On a CPU the images stay in a memory map that all workers share; on a GPU they are moved to the
    device, with all that is computed from them.

    Raises:
        DataError: The decoded images are not there any more, or are not those of the study.
    """
    prepare_process(slot.n_threads)
    device = torch.device(slot.torch_device)
    store = open_store(record.store)
    roles = read_roles(paths.roles)
    return Workplace(
        paths=paths,
        record=record,
        images=TrainingImages(
            images=torch.from_numpy(store.images).to(device),
            labels=torch.from_numpy(store.labels).to(device),
            rows=torch.from_numpy(roles.train).to(device),
            pad=store.pad,
            mean=record.image_input.mean,
            std=record.image_input.std,
        ),
        rows={role: torch.from_numpy(roles.rows(role)).to(device) for role in _JUDGED},
        autocast_dtype=choose_autocast_dtype(device),
        slot=slot.number,
        stopping=stopping,
    )

"""What a worker keeps open from trial to trial: images, roles, device, precision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ensembles.predictor import predict_log_probabilities
from search.data.roles import Role, read_roles
from search.data.store import open_store
from search.devices import Slot
from search.errors import SearchError
from search.memory import Room, free_memory, is_out_of_memory
from search.panel import Panel
from search.paths import StudyPaths
from search.process import choose_autocast_dtype, prepare_process
from search.record import StudyRecord
from search.training import TrainingImages

JUDGED_ROLES: tuple[Role, ...] = ("stop", "ens", "test")
# Rounds are compared on this many images of the stop role: on all 5,550 of a set like CIFAR-10,
# ten looks cost a third of the training. The objective is computed on the whole role.
MAX_IMAGES_OF_A_ROUND = 2000
_CHUNK = 2000


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a worker keeps open from trial to trial."""

    paths: StudyPaths
    record: StudyRecord
    images: TrainingImages
    rows: Mapping[Role, Int64[Tensor, " rows"]]
    """Rows of the stop, ens and test roles."""
    round_rows: Int64[Tensor, " rows"]
    """Rows of the stop role on which rounds are compared."""
    autocast_dtype: torch.dtype | None
    slot: int
    stopping: Callable[[], bool]
    """Whether the worker shall hand its trial back."""
    panel: Panel
    """Where the worker shows that it gets on."""
    room: Room = field(default_factory=Room)
    """How much fits into the memory."""

    def predict(
        self, network: nn.Module, rows: Int64[Tensor, " rows"], *, dtype: torch.dtype | None
    ) -> Float[np.ndarray, "rows classes"]:
        """Return a network's log-probabilities for some images, in bounded memory.

        Where they do not fit, fewer are predicted at a time, until the end of the trial.
        """
        chunks: list[Tensor] = []
        n_done = 0
        while n_done < len(rows):
            self.panel.beat()
            try:
                chunks.append(self._predict_chunk(network, rows[n_done : n_done + _CHUNK], dtype))
            except Exception as error:  # raised again, unless it is one that smaller batches help
                if self.room.n_predicted == 1 or not is_out_of_memory(error):
                    raise
            else:
                n_done += len(chunks[-1])
                continue
            free_memory(self.images.images.device)
            self.room.n_predicted //= 2
        return torch.cat(chunks).numpy()

    def _predict_chunk(
        self, network: nn.Module, rows: Int64[Tensor, " rows"], dtype: torch.dtype | None
    ) -> Float[Tensor, "rows classes"]:
        pad, size = self.images.pad, self.record.task.image_size
        inner = slice(pad, pad + size)
        return predict_log_probabilities(
            network,
            self.images.images[rows][:, inner, inner],
            mean=self.images.mean,
            std=self.images.std,
            batch_size=self.room.n_predicted,
            autocast_dtype=dtype,
        ).cpu()

    def labels(self, rows: Int64[Tensor, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Return the true classes of some images."""
        labels: np.ndarray = self.images.labels[rows].cpu().numpy()
        return labels


def open_workplace(
    paths: StudyPaths,
    record: StudyRecord,
    slot: Slot,
    stopping: Callable[[], bool],
    panel: Panel,
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
    _check_room(device, store.images.nbytes)
    roles = read_roles(paths.roles)
    rows = {role: torch.from_numpy(roles.rows(role)).to(device) for role in JUDGED_ROLES}
    n_stop = len(rows["stop"])
    # Evenly over the rows, which lie class by class in a folder.
    places = torch.linspace(0, n_stop - 1, min(n_stop, MAX_IMAGES_OF_A_ROUND)).round().long()
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
        rows=rows,
        round_rows=rows["stop"][places.to(device)],
        autocast_dtype=choose_autocast_dtype(device),
        slot=slot.number,
        stopping=stopping,
        panel=panel,
    )


def _check_room(device: torch.device, n_bytes: int) -> None:
    """Refuse images that leave no room for a network on the GPU.

    Raises:
        SearchError: They take more than half of what is free.
    """
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if 2 * n_bytes > free:
        raise SearchError(
            f"the decoded images take {n_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB of the GPU "
            "are free; use a smaller --image-size, fewer --workers on it, or --devices cpu."
        )

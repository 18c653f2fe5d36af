"""What a worker keeps open from trial to trial: images, roles, device, precision."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from ensembles.predictor import images_at_once, predict_log_probabilities
from search.assignments import Assignment, Fold
from search.data.folds import OUTSIDE, read_folds
from search.data.roles import Role, read_roles
from search.data.store import open_store
from search.devices import Slot
from search.lessons import open_lesson
from search.memory import Portions, free_memory, is_out_of_memory
from search.panel import Panel
from search.paths import StudyPaths
from search.process import choose_autocast_dtype, prepare_process
from search.record import StudyRecord
from search.training import TrainingImages, unheard
from spaces.networks.builders import build_network
from spaces.recipe import Recipe

logger = logging.getLogger(__name__)

JUDGED_ROLES: tuple[Role, ...] = ("stop", "ens", "test")
# Rounds are compared on this many images of the stop role: on all 5,550 of a set like CIFAR-10,
# ten looks cost a third of the training. The objective is computed on the whole role.
MAX_IMAGES_OF_A_ROUND = 2000
_BATCHES_AT_A_TIME = 4


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a worker keeps open from trial to trial."""

    paths: StudyPaths
    record: StudyRecord
    images: TrainingImages
    rows: Mapping[str, Int64[Tensor, " rows"]]
    """Rows of the images that are predicted in the end: of the stop, ens and test roles, or of
    the fold and the test role; on the CPU."""
    round_rows: Int64[Tensor, " rows"]
    """Rows on which each round is looked at."""
    autocast_dtype: torch.dtype | None
    slot: int
    stopping: Callable[[], bool]
    """Whether the worker shall hand its trial back."""
    panel: Panel
    """Where the worker shows that it gets on."""
    portions: Portions = field(default_factory=Portions)
    """How much fits into the memory."""

    def assigned(self, assignment: Assignment) -> "Workplace":
        """Return the place with what a training learns from, and what it predicts.

        Raises:
            DataError: The folds of the study cannot be read.
            BundleError: The teacher cannot be read.
        """
        fold, lesson = assignment.fold, assignment.lesson
        place = self if fold is None else self._at_fold(fold, assignment.scored_role)
        if lesson is None:
            return place
        teaching = open_lesson(self.paths, lesson, self.images.device)
        return replace(place, images=replace(place.images, teaching=teaching))

    def _at_fold(self, fold: Fold, scored_role: str) -> "Workplace":
        folds = torch.from_numpy(read_folds(self.paths.folds))
        rows = (folds == fold.number).nonzero().flatten()
        others = ((folds != fold.number) & (folds != OUTSIDE)).nonzero().flatten()
        return replace(
            self,
            images=replace(self.images, rows=others),
            rows={scored_role: rows, "test": self.rows["test"]},
            round_rows=_some_of(rows),
        )

    def predict(
        self, network: nn.Module, rows: Int64[Tensor, " rows"], *, dtype: torch.dtype | None
    ) -> Float[np.ndarray, "rows classes"]:
        """Return a network's log-probabilities for some images, in bounded memory.

        Where they do not fit, fewer are predicted at a time, until the end of the trial.
        """
        chunks: list[Tensor] = []
        n_done = 0
        usual = images_at_once(self.record.task.image_size)
        self.images.announce(rows[: _BATCHES_AT_A_TIME * usual])
        while n_done < len(rows):
            self.panel.beat()
            n_at_once = min(self.portions.n_predicted or usual, usual)
            end = n_done + _BATCHES_AT_A_TIME * n_at_once
            some = rows[n_done:end]
            self.images.announce(rows[end : end + len(some)])
            try:
                chunks.append(self._predict_some(network, some, n_at_once, dtype))
            except Exception as error:  # raised again, unless it is one that smaller batches help
                if n_at_once == 1 or not is_out_of_memory(error):
                    raise
            else:
                n_done += len(some)
                continue
            free_memory(self.images.device)
            self.portions.n_predicted = n_at_once // 2
        return torch.cat(chunks).numpy()

    def _predict_some(
        self,
        network: nn.Module,
        rows: Int64[Tensor, " rows"],
        batch_size: int,
        dtype: torch.dtype | None,
    ) -> Float[Tensor, "rows classes"]:
        return predict_log_probabilities(
            network,
            self.pixels(rows),
            mean=self.images.mean,
            std=self.images.std,
            batch_size=batch_size,
            autocast_dtype=dtype,
        ).cpu()

    def predict_roles(self, network: nn.Module) -> dict[str, Float[np.ndarray, "rows classes"]]:
        """Return predictions in float32, as those of an exported bundle are."""
        return {role: self.predict(network, rows, dtype=None) for role, rows in self.rows.items()}

    def load_network(self, recipe: Recipe, weights: Mapping[str, Tensor]) -> nn.Module:
        """Build the network of a recipe on the device, with weights of its own."""
        network = build_network(recipe.architecture, self.record.task)
        network.load_state_dict(weights)
        return network.to(self.images.device).to(memory_format=torch.channels_last)

    def pixels(self, rows: Int64[Tensor, " rows"]) -> UInt8[Tensor, "rows h w c"]:
        """Return some images as they are, where they lie, without the margin of crops."""
        pad, size = self.images.pad, self.record.task.image_size
        inner = slice(pad, pad + size)
        images = self.images.images
        return images[rows.to(images.device)][:, inner, inner]

    def labels(self, rows: Int64[Tensor, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Return the true classes of some images."""
        labels: np.ndarray = self.images.labels.cpu()[rows].numpy()
        return labels


def open_workplace(
    paths: StudyPaths,
    record: StudyRecord,
    slot: Slot,
    stopping: Callable[[], bool],
    panel: Panel | None = None,
) -> Workplace:
    """Prepare this process and open the images of a study.

    On a CPU the images stay in a memory map that all workers share. They are moved to a GPU if
    they leave it enough room; else they stay in the map too, and batches are sent.

    Raises:
        DataError: The decoded images are not there any more, or are not those of the study.
    """
    prepare_process(slot.n_threads)
    device = torch.device(slot.torch_device)
    store = open_store(record.store)
    home = choose_home(store.images.nbytes, device, free_bytes=_free_bytes(device))
    if home != device:
        logger.info("the images stay in the host's memory: the GPU has no room for them")
    roles = read_roles(paths.roles)
    rows = {str(role): torch.from_numpy(roles.rows(role)) for role in JUDGED_ROLES}

    def announce(some: Int64[Tensor, " rows"]) -> None:
        store.announce(some.numpy())

    return Workplace(
        paths=paths,
        record=record,
        images=TrainingImages(
            images=torch.from_numpy(store.images).to(home),
            labels=torch.from_numpy(store.labels).to(device),
            rows=torch.from_numpy(roles.train),
            pad=store.pad,
            mean=record.image_input.mean,
            std=record.image_input.std,
            announce=announce if home.type == "cpu" else unheard,
        ),
        rows=rows,
        round_rows=_some_of(rows["stop"]),
        autocast_dtype=choose_autocast_dtype(device),
        slot=slot.number,
        stopping=stopping,
        panel=panel or Panel(),
    )


def _some_of(rows: Int64[Tensor, " rows"]) -> Int64[Tensor, " some"]:
    """Return what a round is looked at on: evenly over the rows, which lie class by class."""
    n_rows = len(rows)
    places = torch.linspace(0, n_rows - 1, min(n_rows, MAX_IMAGES_OF_A_ROUND)).round().long()
    return rows[places]


def choose_home(n_bytes: int, device: torch.device, *, free_bytes: int | None) -> torch.device:
    """Return where the images of a study shall lie: on the device that computes, or on the CPU.

    Args:
        n_bytes: What they take.
        device: What computes.
        free_bytes: Its free memory; None where it is the host's own.

    Returns:
        The device if at least half of its free memory is left to the networks.
    """
    if free_bytes is None or 2 * n_bytes <= free_bytes:
        return device
    return torch.device("cpu")


def _free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU; None for a device that has none of its own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None

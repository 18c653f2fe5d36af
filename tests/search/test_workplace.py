from pathlib import Path

import pytest
import torch
from runs import make_tiny_study

from search.data.roles import read_roles
from search.devices import Slot
from search.workplace import choose_home, open_workplace

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


@pytest.mark.parametrize(
    ("n_bytes", "free_bytes", "home"),
    [(50, 100, GPU), (51, 100, CPU), (10**12, 10**9, CPU)],
)
def test_images_move_to_a_gpu_if_they_leave_half_of_it_free(
    n_bytes: int, free_bytes: int, home: torch.device
) -> None:
    assert choose_home(n_bytes, GPU, free_bytes=free_bytes) == home


def test_a_device_without_memory_of_its_own_keeps_the_memory_map() -> None:
    assert choose_home(10**12, CPU, free_bytes=None) == CPU


def test_rows_labels_and_predictions_are_those_of_the_roles(tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path)
    slot = Slot(number=0, device="cpu", n_threads=1)

    place = open_workplace(study.paths, study.record, slot, lambda: False)

    roles = read_roles(study.paths.roles)
    assert place.rows["ens"].tolist() == roles.ens.tolist()
    assert place.images.rows.tolist() == roles.train.tolist()
    assert set(place.round_rows.tolist()) <= set(roles.stop.tolist())
    assert place.images.device == CPU
    rows = place.rows["test"]
    assert place.labels(rows).tolist() == place.images.labels[rows].tolist()
    middle = torch.nn.Flatten()  # a network whose logits are its pixels
    predicted = place.predict(middle, rows[:3], dtype=None)
    pad, size = place.images.pad, study.record.task.image_size
    pixels = place.images.images[rows[:3], pad : pad + size, pad : pad + size, 0].flatten(1)
    assert predicted.argmax(axis=1).tolist() == pixels.float().argmax(dim=1).tolist()

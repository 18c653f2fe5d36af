"""Makes the greedy soup of each trial: an average of the weights that its one training passed.

Ingredients are chosen on the ens role, as ensembles are; predictions for the test role are written
as those of every network, and not looked at. Networks of other trainings are never averaged: they
share neither start nor valley.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ensembles.averaging import average_weights, reestimate_norms
from ensembles.calibration import log_loss_after_temperature
from ensembles.pool import normalize_log_probabilities
from ensembles.predictor import images_at_once
from ensembles.soup import select_ingredients
from search.candidates import Candidate, candidate_pool, list_trainings
from search.devices import list_gpus, plan_slots
from search.errors import NothingToDoError
from search.memory import MIN_MICRO_BATCH
from search.paths import StudyPaths
from search.predictions import has_predictions, read_weights, write_network
from search.preparation import with_images
from search.seeding import derive_seed
from search.soup_records import Soup, explain_missing_soup, read_soups, soup_files, write_soups
from search.study import Study
from search.workplace import Workplace, open_workplace

logger = logging.getLogger(__name__)

N_NORM_IMAGES = 2048
"""Training images that the statistics of batch norms are estimated on."""
NORM_BATCH = 256


def make_soups(study: Study, *, on_soup: Callable[[Soup], None] = lambda _: None) -> list[Soup]:
    """Make the soup of each kept trial that has more than one network, or find it.

    Args:
        study: A study whose trials left snapshots.
        on_soup: Told each soup that is made now.

    Returns:
        What became of each trial, by number. A soup of several networks is a candidate from now
        on.

    Raises:
        NothingToDoError: No trial has snapshots.
        DataError: The images of the study are gone.
    """
    trainings = [each for each in list_trainings(study) if len(each) > 1]
    if not trainings:
        raise NothingToDoError(explain_missing_soup((), has_snapshots=False))
    known = {soup.trial: soup for soup in read_soups(study.paths) if _is_whole(study.paths, soup)}
    place: Workplace | None = None
    for networks in trainings:
        trial_number = networks[0].trial
        offered = tuple(each.name for each in networks)
        if trial_number in known and known[trial_number].offered == offered:
            continue
        place = place or _open_place(study)
        known[trial_number] = _make_soup(study, place, networks)
        write_soups(study.paths, [known[number] for number in sorted(known)])
        on_soup(known[trial_number])
    return [known[networks[0].trial] for networks in trainings]


def _is_whole(paths: StudyPaths, soup: Soup) -> bool:
    files = soup_files(paths, soup.trial)
    return not soup.is_average or (files.weights.is_file() and has_predictions(files))


def _open_place(study: Study) -> Workplace:
    record = with_images(study).record
    devices = "cpu" if record.config.devices == "cpu" else "auto"
    slot = plan_slots(devices, 1, gpus=list_gpus(devices))[0]
    return open_workplace(study.paths, record, slot, lambda: False)


def _make_soup(study: Study, place: Workplace, networks: Sequence[Candidate]) -> Soup:
    """Choose the ingredients of one training, and write their average if there are several."""
    pool = candidate_pool(study, networks, "ens")
    losses = [log_loss_after_temperature(each, pool.labels) for each in pool.log_probabilities]
    pot = _Pot(
        place=place,
        networks=networks,
        weights=[read_weights(each.files) for each in networks],
        norm_batches=_norm_batches(place),
        ens_labels=pool.labels,
    )
    found = select_ingredients(losses, pot.measure)
    soup = Soup(
        trial=networks[0].trial,
        offered=tuple(each.name for each in networks),
        ingredients=tuple(networks[index].name for index in found.chosen),
        log_loss=round(found.log_loss, 6),
        best_log_loss=round(min(losses), 6),
    )
    files = soup_files(study.paths, soup.trial)
    if files.folder.is_dir():
        shutil.rmtree(files.folder)
    if soup.is_average:
        network = pot.average(found.chosen)
        write_network(files, network.state_dict(), place.predict_roles(network))
    logger.info(
        "trial %d: soup of %s, log-loss %.4f nats on ens, its best network alone %.4f",
        *(soup.trial, ", ".join(soup.ingredients), soup.log_loss, soup.best_log_loss),
    )
    return soup


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pot:
    """The networks of one training, and what it takes to average some of them."""

    place: Workplace
    networks: Sequence[Candidate]
    weights: Sequence[dict[str, Tensor]]
    norm_batches: Sequence[Int64[Tensor, " rows"]]
    ens_labels: Int64[np.ndarray, " images"]

    def average(self, chosen: tuple[int, ...]) -> nn.Module:
        """Return the average of some networks, with statistics of its own."""
        weights = average_weights([self.weights[index] for index in chosen])
        network = self.place.load_network(self.networks[0].recipe, weights)
        images = self.place.images
        batches = (self.place.pixels(rows).to(images.device) for rows in self.norm_batches)
        reestimate_norms(network, batches, mean=images.mean, std=images.std)
        return network

    def measure(self, chosen: tuple[int, ...]) -> float:
        """Return the log-loss of an average on the ens role, after a temperature of its own."""
        rows = self.place.rows["ens"]
        predicted = self.place.predict(self.average(chosen), rows, dtype=None)
        if not np.isfinite(predicted).all():
            return np.inf
        return log_loss_after_temperature(normalize_log_probabilities(predicted), self.ens_labels)


def _norm_batches(place: Workplace) -> tuple[Int64[Tensor, " rows"], ...]:
    """Draw training images of all classes; the rows themselves lie class by class in a folder."""
    rows = place.images.rows
    generator = torch.Generator().manual_seed(derive_seed(place.record.config.seed, "soup"))
    chosen = torch.randperm(len(rows), generator=generator)[:N_NORM_IMAGES].to(rows.device)
    usual = images_at_once(place.record.task.image_size)
    n_at_once = max(MIN_MICRO_BATCH, min(NORM_BATCH, usual))
    return rows[chosen].tensor_split(-(-len(chosen) // n_at_once))

"""An exported ensemble: it predicts where no study, no Optuna and no data are left.

A bundle is a folder that may have come from anywhere:

    manifest.json                  see `ensembles.manifest`
    members/00000.safetensors      the weights of the first member, float32
    self_test.safetensors          three drawn images and the probabilities expected for them
    README.md                      the model card

No file is a pickle. Each file's size and hash are checked before it is parsed, and networks are
built from the records of `spaces` alone. `ensembles.export` writes such folders.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from ensembles.decision import Decision
from ensembles.errors import BundleError
from ensembles.folders import read_file
from ensembles.images import ImageError, load_image
from ensembles.inputs import ImageInput
from ensembles.manifest import Manifest, manifest_from_text
from ensembles.members import load_network
from ensembles.predictor import Predictor, images_at_once
from ensembles.self_test import run_self_test

_MAX_MANIFEST_BYTES = 64 * 1024**2

Picture: TypeAlias = str | Path | bytes | Image.Image | np.ndarray
"""A file, the bytes of a file, a Pillow image, or `uint8` pixels (see `load_image`)."""

_Decoding: TypeAlias = tuple[Picture, Future[np.ndarray]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a bundle says about one picture, or why it says nothing."""

    source: Picture
    """As it was given."""
    log_probabilities: Float[np.ndarray, " classes"] | None
    """None for a picture that cannot be read."""
    problem: str = ""
    """Why it cannot be read, in one line."""
    label: str | None = None
    """The class by the bundle's decision rule; None for a picture that cannot be read."""
    possible_classes: tuple[str, ...] | None = None
    """The classes that it may have, for the bundle's share of misses; None where the bundle
    promises nothing, or only of the whole ensemble while a cascade ran."""
    is_answered: bool = True
    """Whether the bundle answers for the label; it does where it promises nothing, or only of the
    whole ensemble while a cascade ran."""
    n_members_run: int | None = None
    """How many members it took, if they ran as a cascade."""

    @property
    def probabilities(self) -> Float[np.ndarray, " classes"]:
        """The distribution over the classes.

        Raises:
            ImageError: The picture cannot be read.
        """
        if self.log_probabilities is None:
            raise ImageError(f"{_name_of(self.source)}: {self.problem}")
        probabilities: np.ndarray = np.exp(self.log_probabilities)
        return probabilities


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A loaded bundle."""

    folder: Path
    manifest: Manifest
    predictor: Predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the probabilities."""
        return self.manifest.classes

    @property
    def decision(self) -> Decision:
        """How probabilities become a label."""
        return self.manifest.decision

    @property
    def default_batch_size(self) -> int:
        """How many images to run at once: fewer, the larger they are."""
        return images_at_once(self.manifest.image_input.size)

    def predict(
        self,
        sources: Iterable[Picture],
        *,
        batch_size: int | None = None,
        cascade: bool | None = None,
    ) -> Float[np.ndarray, "images classes"]:
        """Return the probabilities of all classes for each picture.

        Args:
            sources: Pictures, of any size and mode.
            batch_size: Pictures held and run at once; None: by their size.
            cascade: Run the members one after another, and stop when they are sure: cheaper, and
                a little less accurate; None: as the bundle prefers.

        Returns:
            One row per picture, summing to 1.

        Raises:
            ImageError: A picture cannot be read; `predict_each` goes on after such a one.
            BundleError: `cascade` is wanted and the bundle has none.
        """
        found = self.predict_each(sources, batch_size=batch_size, cascade=cascade)
        rows = [each.probabilities for each in found]
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)))

    def predict_each(
        self,
        sources: Iterable[Picture],
        *,
        batch_size: int | None = None,
        cascade: bool | None = None,
    ) -> Iterator[Prediction]:
        """Predict picture by picture, in order; one that cannot be read does not stop the rest.

        Args:
            sources: As in `predict`; taken batch by batch, so there may be any number.
            batch_size: Pictures held and run at once; None: by their size.
            cascade: As in `predict`.

        Yields:
            One prediction for each source. While a batch runs, the next one is decoded.

        Raises:
            BundleError: `cascade` is wanted and the bundle has none.
        """
        cascade = self.manifest.prefers_cascade if cascade is None else cascade
        if cascade and self.manifest.cascade is None:
            raise BundleError(
                f"{self.folder} has no cascade: it holds a single model, or was exported without."
            )
        pictures = iter(sources)
        size = batch_size or self.default_batch_size
        image_input = self.manifest.image_input
        waiting: list[_Decoding] = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as decoders:
            while batch := list(islice(pictures, size)):
                started = [
                    (picture, decoders.submit(_load, picture, image_input)) for picture in batch
                ]
                yield from self._finish(waiting, size, cascade=cascade)
                waiting = started
            yield from self._finish(waiting, size, cascade=cascade)

    def _finish(
        self, decodings: list[_Decoding], batch_size: int, *, cascade: bool
    ) -> Iterator[Prediction]:
        outcomes = [_outcome(future) for _, future in decodings]
        pixels = [outcome for outcome in outcomes if not isinstance(outcome, ImageError)]
        answers = iter(
            self._answer(np.stack(pixels), batch_size, cascade=cascade) if pixels else ()
        )
        for (source, _), outcome in zip(decodings, outcomes, strict=True):
            if isinstance(outcome, ImageError):
                yield Prediction(source=source, log_probabilities=None, problem=str(outcome))
            else:
                yield replace(next(answers), source=source)

    def _answer(
        self, pixels: UInt8[np.ndarray, "n h w c"], batch_size: int, *, cascade: bool
    ) -> Iterator[Prediction]:
        """Predict decoded pictures, and add what the bundle promises of the predictions."""
        images, manifest = torch.from_numpy(pixels), self.manifest
        if cascade and manifest.cascade:
            result = self.predictor.predict_in_cascade(
                images, manifest.cascade, batch_size=batch_size
            )
            labels = self.decision.decide(result.log_probabilities)
            for number, row in enumerate(result.log_probabilities):
                yield Prediction(
                    source="",
                    log_probabilities=row,
                    label=self.classes[labels[number]],
                    n_members_run=int(result.n_members_run[number]),
                )
            return
        rows = self.predictor.predict_log_probabilities(images, batch_size=batch_size)
        labels = self.decision.decide(rows)
        sets = manifest.conformal.sets(rows) if manifest.conformal else None
        answered = manifest.rejection.answers(rows) if manifest.rejection else None
        for number, row in enumerate(rows):
            yield Prediction(
                source="",
                log_probabilities=row,
                label=self.classes[labels[number]],
                possible_classes=None if sets is None else self._named(row, sets[number]),
                is_answered=answered is None or bool(answered[number]),
            )

    def _named(
        self, row: Float[np.ndarray, " classes"], in_set: Bool[np.ndarray, " classes"]
    ) -> tuple[str, ...]:
        """Return the names of the classes in a set, the most probable first."""
        order = np.argsort(-row, kind="stable")
        return tuple(self.classes[index] for index in order if in_set[index])


def load_bundle(
    folder: Path | str, *, device: torch.device | str = "cpu", check: bool = True
) -> Bundle:
    """Load a bundle, trusting nothing in it.

    Args:
        folder: The bundle, wherever it was moved to.
        device: Where its members shall run.
        check: Run the self-test first.

    Returns:
        The bundle, ready to predict.

    Raises:
        BundleError: Something is missing, changed, unknown, out of range or does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a bundle: no such folder.")
    manifest = manifest_from_text(
        read_file(folder, "manifest.json", max_bytes=_MAX_MANIFEST_BYTES)
    )
    networks = tuple(load_network(folder, record, manifest.task) for record in manifest.members)
    predictor = Predictor(
        networks=networks, combination=manifest.combination, image_input=manifest.image_input
    )
    if check:
        run_self_test(folder, manifest, predictor)
    for network in networks:
        network.to(device)
    return Bundle(folder=folder, manifest=manifest, predictor=predictor)


def _load(picture: Picture, image_input: ImageInput) -> np.ndarray:
    return load_image(Path(picture) if isinstance(picture, str) else picture, image_input)


def _name_of(picture: Picture) -> str:
    return str(picture) if isinstance(picture, str | Path) else type(picture).__name__


def _outcome(future: Future[np.ndarray]) -> np.ndarray | ImageError:
    try:
        return future.result()
    except ImageError as error:
        return error

"""Trainings without a study: on rows of a store, in this process, in its one thread."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ensembles.predictor import predict_log_probabilities
from search.data.listing import GIVEN, Given
from search.data.statistics import channel_statistics
from search.data.store import ImageStore
from search.training import TrainingImages


def rows_of(store: ImageStore, given: Given) -> Tensor:
    """Return the images that the user's own split put somewhere."""
    return torch.from_numpy(np.flatnonzero(store.given == GIVEN.index(given)))


def training_images(store: ImageStore, rows: Tensor) -> TrainingImages:
    """Open a store on the CPU, to train on some of its rows."""
    mean, std = channel_statistics(store, rows.numpy())
    return TrainingImages(
        images=torch.from_numpy(store.images),
        labels=torch.from_numpy(store.labels),
        rows=rows,
        pad=store.pad,
        mean=mean,
        std=std,
    )


def predict(
    network: nn.Module,
    store: ImageStore,
    rows: Tensor,
    images: TrainingImages,
    dtype: torch.dtype | None,
) -> Float[np.ndarray, "rows classes"]:
    """Return what a network that was trained on `images` says of some rows."""
    pixels = torch.from_numpy(store.unpadded(rows.numpy()))
    predicted: np.ndarray = predict_log_probabilities(
        network, pixels, mean=images.mean, std=images.std, autocast_dtype=dtype
    ).numpy()
    return predicted

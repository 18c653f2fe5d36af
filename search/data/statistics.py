"""Mean and standard deviation of the pixels that a network is normalized by."""

import numpy as np
from jaxtyping import Int64

from search.data.store import ImageStore

_CHUNK_BYTES = 1 << 23


def channel_statistics(
    store: ImageStore, rows: Int64[np.ndarray, " rows"]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, for pixels from 0 to 1.

    Computed from counts of the 256 values, so exactly, whatever the order or number of images.

    Args:
        store: The images.
        rows: Those to look at: the train role.

    Returns:
        Mean and standard deviation; a channel without any contrast has deviation 1.
    """
    counts = np.zeros((store.channels, 256), dtype=np.int64)
    n_at_once = max(1, _CHUNK_BYTES // store.images[:1].nbytes)
    for start in range(0, len(rows), n_at_once):
        store.announce(rows[start + n_at_once : start + 2 * n_at_once])
        pixels = store.unpadded(rows[start : start + n_at_once])
        for channel in range(store.channels):
            counts[channel] += np.bincount(pixels[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    means = counts @ values / counts.sum(axis=1)
    squares = counts @ values**2 / counts.sum(axis=1)
    stds = np.sqrt(np.maximum(squares - means**2, 0))
    stds[stds < 1e-4] = 1
    return tuple(means.tolist()), tuple(stds.tolist())

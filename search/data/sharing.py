"""Images shared out by a hash of their pixels: stratified, whole units, whatever their order."""

import numpy as np
from jaxtyping import Float64, Int64, UInt64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from search.data.store import ImageStore


def mixed_keys(hashes: UInt64[np.ndarray, " images"], seed: int) -> UInt64[np.ndarray, " images"]:
    """Return one key for each image: its hash and the seed, well mixed (splitmix64)."""
    values = hashes ^ _finalized(np.array([seed], dtype=np.uint64))
    return _finalized(values)


def share_out(
    store: ImageStore,
    rows: Int64[np.ndarray, " rows"],
    keys: UInt64[np.ndarray, " images"],
    shares: Float64[np.ndarray, " parts"],
) -> Int64[np.ndarray, " rows"]:
    """Share some images out, class by class; equal images and groups stay together.

    Args:
        store: All images.
        rows: Those to share out.
        keys: One for each image of the store, from `mixed_keys`; they decide who goes where.
        shares: Of each part, in any unit.

    Returns:
        For each row, the part that it belongs to.
    """
    unit = _units(store, rows)
    sizes = np.bincount(unit)
    main_class = _main_classes(unit, store.labels[rows])
    unit_key = np.full(len(sizes), np.iinfo(np.uint64).max)
    np.minimum.at(unit_key, unit, keys[rows])
    ends = np.cumsum(shares / shares.sum())
    chosen = np.zeros(len(sizes), dtype=np.int64)
    for label in range(len(store.class_names)):
        mine = np.flatnonzero(main_class == label)
        mine = mine[np.argsort(unit_key[mine], kind="stable")]
        chosen[mine] = _cut(sizes[mine], ends)
    return np.asarray(chosen[unit])


def _main_classes(
    unit: Int64[np.ndarray, " rows"], labels: Int64[np.ndarray, " rows"]
) -> Int64[np.ndarray, " units"]:
    """Return the most frequent class of each unit, the first of several."""
    n_classes = int(labels.max()) + 1
    pairs, counts = np.unique(unit * n_classes + labels, return_counts=True)
    units, classes = np.divmod(pairs, n_classes)
    order = np.lexsort((classes, -counts, units))
    _, first = np.unique(units[order], return_index=True)
    return np.asarray(classes[order][first])


def _cut(sizes: Int64[np.ndarray, " units"], ends: np.ndarray) -> Int64[np.ndarray, " units"]:
    """Cut a line of units by shares of their images; each part gets one at least if it can.

    A unit belongs where its middle lies.
    """
    middles = np.cumsum(sizes) - sizes / 2
    n_units, n_parts = len(sizes), len(ends)
    parts = np.zeros(n_units, dtype=np.int64)
    start = 0
    for part in range(1, n_parts):
        at = int(np.searchsorted(middles, ends[part - 1] * sizes.sum() - 1e-6))
        start = max(min(at, n_units - (n_parts - part)), min(start + 1, n_units))
        parts[start:] = part
    return parts


def _units(store: ImageStore, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """Number what must stay together: equal pixels, equal groups, and chains of both."""
    _, content = np.unique(store.hashes[rows], return_inverse=True)
    if store.groups is None:
        return np.asarray(content, dtype=np.int64)
    _, group = np.unique(store.groups[rows], return_inverse=True)
    n_contents, n_groups = content.max() + 1, group.max() + 1
    links = coo_array(
        (np.ones(len(rows), dtype=np.int8), (content, n_contents + group)),
        shape=(n_contents + n_groups,) * 2,
    )
    _, component = connected_components(links, directed=False)
    _, unit = np.unique(component[content], return_inverse=True)
    return np.asarray(unit, dtype=np.int64)


def _finalized(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    values = values + np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))

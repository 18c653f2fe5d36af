from collections.abc import Sequence

import numpy as np
import pytest

from search.data.listing import GIVEN, Given, Listing, digest
from search.errors import DataError


def listing_of(labels: Sequence[int], given: Sequence[Given], n_classes: int) -> Listing:
    return Listing(
        source="made",
        names=[str(row) for row in range(len(labels))],
        labels=np.array(labels, dtype=np.int64),
        class_names=("cat", "dog", "owl")[:n_classes],
        given=np.array([GIVEN.index(name) for name in given], dtype=np.uint8),
        signature="",
        load=lambda _: np.zeros((4, 4), dtype=np.uint8),
    )


@pytest.mark.parametrize(
    ("labels", "given", "n_classes", "message"),
    [
        ([], [], 0, "made: no images"),
        ([0, 0], ["none", "none"], 1, "only one class, 'cat'; a search needs at least 2"),
        ([0, 1], ["test", "test"], 2, "no images to train on; a search needs at least 2"),
        ([0, 1, 2], ["train", "train", "test"], 3, "class 'owl' is in test but not in train"),
        ([0, 1, 2], ["train", "train", "val"], 3, "class 'owl' is in val but not in train, .*cat"),
        ([0, 1], ["none", "none"], 3, "class 'owl' has no images to train on"),
    ],
)
def test_what_nobody_can_learn_from_is_refused(
    labels: list[int], given: list[Given], n_classes: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        listing_of(labels, given, n_classes).check_trainable()


def test_a_digest_tells_parts_types_and_shapes_apart() -> None:
    pixels = np.arange(4, dtype=np.uint8)

    digests = {
        digest("ab", "c"),
        digest("a", "bc"),
        digest(pixels),
        digest(pixels.reshape(2, 2)),
        digest(pixels.astype(np.int8)),
        digest(pixels[::-1]),
        digest(pixels[:0]),
    }

    assert len(digests) == 7
    assert digest(pixels, "a") == digest(pixels.copy(), b"a")

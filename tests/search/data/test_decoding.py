import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensembles.images import Source
from ensembles.inputs import ImageInput
from search.data import decoding
from search.data.decoding import choose_input, decode_images
from search.data.listing import Listing


def listing_of(sources: Sequence[Source]) -> Listing:
    return Listing(
        source="made",
        names=[f"image {row}" for row in range(len(sources))],
        labels=np.arange(len(sources), dtype=np.int64) % 2,
        class_names=("a", "b"),
        given=np.zeros(len(sources), dtype=np.uint8),
        signature="",
        load=lambda index: sources[index],
    )


def blank(width: int, height: int) -> np.ndarray:
    return np.zeros((height, width), dtype=np.uint8)


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([(28, 28)] * 3, 28),
        ([(64, 64)] * 3, 64),
        ([(65, 65)] * 3, 64),
        ([(8, 8)] * 3, 8),
        ([(2, 2)] * 3, 32),
        ([(40, 30)] * 3, 32),
        ([(500, 60), (60, 500), (62, 900)], 64),
        ([(500, 333)] * 3, 128),
        ([(32, 32), (32, 32), (100, 100)], 32),
    ],
)
def test_the_size_comes_from_the_data(shapes: list[tuple[int, int]], size: int) -> None:
    listing = listing_of([blank(*shape) for shape in shapes])

    assert choose_input(listing, image_size=None, fit="crop").size == size
    assert choose_input(listing, image_size=20, fit="crop").size == 20


def test_one_colour_picture_makes_a_set_coloured() -> None:
    grey_as_rgb = blank(8, 8)[:, :, None].repeat(3, axis=2)
    red = grey_as_rgb.copy()
    red[0, 0, 0] = 1

    def channels(*sources: Source) -> int:
        return choose_input(listing_of(sources), image_size=None, fit="crop").channels

    assert channels(blank(8, 8), grey_as_rgb, b"damaged") == 1
    assert channels(blank(8, 8), grey_as_rgb, red) == 3
    assert channels(b"damaged", b"damaged") == 1


def test_pixels_are_written_once_padded_by_reflection(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    listing = listing_of(list(images))

    decode_images(listing, ImageInput(size=8, channels=3), path=tmp_path / "x.npy", pad=2)

    written = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert written.shape == (5, 12, 12, 3)
    np.testing.assert_array_equal(written[:, 2:-2, 2:-2], images)
    np.testing.assert_array_equal(written[:, 1, 2:-2], images[:, 1])
    np.testing.assert_array_equal(written[:, 0, 2:-2], images[:, 2])
    np.testing.assert_array_equal(written[:, 2:-2, -1], images[:, :, -3])


@pytest.mark.parametrize("n_threads", [1, 3])
def test_chunks_and_threads_keep_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_threads: int
) -> None:
    monkeypatch.setattr(decoding, "_CHUNK_BYTES", 7 * 64)
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    progress: list[tuple[int, int]] = []

    decoded = decode_images(
        listing_of(list(images)),
        ImageInput(size=8, channels=1),
        path=tmp_path / "x.npy",
        pad=1,
        on_progress=lambda done, total: progress.append((done, total)),
        n_threads=n_threads,
    )

    np.testing.assert_array_equal(np.load(tmp_path / "x.npy")[:, 1:-1, 1:-1, 0], images)
    assert decoded.rows.tolist() == list(range(50))
    n_done = [done for done, _ in progress]
    assert n_done == sorted(set(n_done))
    assert {7, 14, 21, 28, 35, 42, 49} < set(n_done)
    assert progress[-1] == (50, 50)


def test_decoding_can_be_ended_between_two_pictures_of_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_MAX_PART", 2)
    listing = listing_of([blank(8, 8)] * 50)
    is_asked_to_stop = threading.Event()
    loaded: list[int] = []

    def load(row: int) -> Source:
        loaded.append(row)
        assert row < 2 or is_asked_to_stop.wait(60)  # all but two take until somebody asks to stop
        return listing.load(row)

    def stop(n_done: int, n_images: int) -> None:
        assert (n_done, n_images) == (2, 50)
        is_asked_to_stop.set()
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        decode_images(
            replace(listing, load=load),
            ImageInput(size=8, channels=1),
            path=tmp_path / "x.npy",
            pad=1,
            on_progress=stop,
        )

    assert len(loaded) < 50


def test_the_sample_can_be_ended_between_two_pictures() -> None:
    told: list[tuple[int, int]] = []

    choose_input(
        listing_of([blank(8, 8)] * 3),
        image_size=8,
        fit="crop",
        on_progress=lambda *said: told.append(said),
    )

    assert told == [(0, 3)] * 3


def test_unreadable_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    sources: list[Source] = [images[0], b"", images[2], tmp_path / "gone.png"]

    decoded = decode_images(
        listing_of(sources), ImageInput(size=8, channels=1), path=tmp_path / "x.npy", pad=1
    )

    np.testing.assert_array_equal(np.load(tmp_path / "x.npy")[:, 1:-1, 1:-1, 0], images[[0, 2]])
    assert decoded.rows.tolist() == [0, 2]
    assert decoded.skipped == (
        ("image 1", "empty file"),
        ("image 3", "No such file or directory"),
    )


def test_equal_pixels_have_equal_hashes(tmp_path: Path) -> None:
    first, second = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)

    decoded = decode_images(
        listing_of([first, second, first]),
        ImageInput(size=8, channels=1),
        path=tmp_path / "x.npy",
        pad=1,
    )

    assert decoded.hashes[0] == decoded.hashes[2] != decoded.hashes[1]


def test_a_colour_picture_in_a_grey_set_becomes_grey(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[:, :, 0] = 255

    decode_images(
        listing_of([blank(8, 8), red]),
        ImageInput(size=8, channels=1),
        path=tmp_path / "x.npy",
        pad=1,
    )

    assert np.unique(np.load(tmp_path / "x.npy")[1]).tolist() == [76]  # 0.299 of 255

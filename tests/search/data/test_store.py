import ctypes
import json
import logging
import mmap
import multiprocessing
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from search.data import statistics
from search.data import store as store_module
from search.data.folders import read_folder
from search.data.statistics import channel_statistics
from search.data.store import ImageStore, open_store, prepare_store
from search.errors import DataError, SearchError
from spaces.task import Task

MakePictures = Callable[..., Path]


@pytest.fixture
def root(make_pictures: MakePictures) -> Path:
    return make_pictures(*(f"{name}/{number}.png" for name in "ab" for number in range(4)))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def prepare(root: Path, cache: Path, **options: int) -> tuple[ImageStore, list[tuple[int, int]]]:
    """Prepare a folder; return what was told of progress too."""
    progress: list[tuple[int, int]] = []
    store = prepare_store(
        read_folder(root),
        cache_folder=cache,
        on_progress=lambda done, total: progress.append((done, total)),
        n_threads=1,
        image_size=options.get("image_size"),
    )
    return store, progress


def test_a_store_holds_what_the_listing_said(root: Path, cache: Path) -> None:
    store, progress = prepare(root, cache)

    assert progress[-1] == (8, 8)
    assert store.task == Task(image_size=8, channels=3, n_classes=2)
    assert (store.image_input.size, store.image_input.fit, store.pad) == (8, "crop", 1)
    assert store.images.shape == (8, 10, 10, 3)
    assert store.labels.tolist() == [0] * 4 + [1] * 4
    assert store.names[4] == "b/0.png"
    assert store.class_names == ("a", "b")
    assert store.given.tolist() == [0] * 8
    assert store.groups is None
    assert store.skipped == ()
    assert len(store) == 8


def test_a_second_start_is_a_look_up(root: Path, cache: Path) -> None:
    first, _ = prepare(root, cache)

    second, progress = prepare(root, cache)

    assert progress == []
    assert second.folder == first.folder
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.images, first.images)


def test_another_size_or_a_changed_file_is_decoded_anew(root: Path, cache: Path) -> None:
    first, _ = prepare(root, cache)
    larger, _ = prepare(root, cache, image_size=16)
    (root / "a" / "0.png").write_bytes((root / "b" / "0.png").read_bytes())

    changed, _ = prepare(root, cache)

    assert larger.images.shape == (8, 20, 20, 3)
    assert larger.pad == 2
    assert changed.hashes[0] == changed.hashes[4]
    assert len({store.folder for store in (first, larger, changed)}) == 3
    assert changed.fingerprint != first.fingerprint


def test_the_fingerprint_does_not_depend_on_names(root: Path, cache: Path) -> None:
    first, _ = prepare(root, cache)
    (root / "a" / "0.png").rename(root / "a" / "9.png")

    renamed, _ = prepare(root, cache)

    assert renamed.folder != first.folder
    assert renamed.hashes.tolist() != first.hashes.tolist()
    assert renamed.fingerprint == first.fingerprint


def test_a_write_to_the_images_does_not_reach_the_disk(root: Path, cache: Path) -> None:
    store, _ = prepare(root, cache)
    before = np.array(store.images)

    store.images[:] = 0

    np.testing.assert_array_equal(open_store(store.folder).images, before)


def test_the_inner_part_is_the_picture(root: Path, cache: Path) -> None:
    store, _ = prepare(root, cache)

    np.testing.assert_array_equal(store.unpadded(slice(2, 4)), store.images[2:4, 1:-1, 1:-1])
    rows = np.array([5, 1], dtype=np.int64)
    np.testing.assert_array_equal(store.unpadded(rows), store.images[rows][:, 1:-1, 1:-1])


def test_unreadable_files_are_skipped_aloud(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "a" / "1.png").write_bytes(b"no picture")

    with caplog.at_level(logging.WARNING):
        store, _ = prepare(root, cache)

    assert store.skipped == (("a/1.png", "not a picture in a known format"),)
    assert store.labels.tolist() == [0] * 3 + [1] * 4
    assert store.names[1] == "a/2.png"
    assert len(store.images) == len(store.hashes) == 7
    assert "1 of 8 pictures cannot be read and are left out; the first, a/1.png" in caplog.text
    assert prepare(root, cache)[0].skipped == store.skipped


def test_a_class_of_which_nothing_can_be_read_is_refused(root: Path, cache: Path) -> None:
    for file in (root / "a").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no picture of class 'a' can be read"):
        prepare(root, cache)

    for file in (root / "b").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"8 of 8 pictures cannot be read; .*a/0\.png: empty file"):
        prepare(root, cache)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_what_a_killed_decoder_left_is_swept(root: Path, cache: Path) -> None:
    store, _ = prepare(root, cache)
    partial = store.folder.with_suffix(".partial")
    store.folder.rename(partial)

    again, progress = prepare(root, cache)

    assert progress[-1] == (8, 8)
    assert again.folder == store.folder
    assert not partial.exists()


@pytest.mark.parametrize("name", ["images.npy", "rows.npz", "manifest.json"])
def test_a_damaged_store_is_refused_by_workers_and_made_anew_by_a_start(
    root: Path, cache: Path, name: str
) -> None:
    store, _ = prepare(root, cache)
    whole = (store.folder / name).read_bytes()
    (store.folder / name).write_bytes(whole[: len(whole) // 2])

    with pytest.raises(
        DataError, match="no whole store of decoded images; `python -m search resume`"
    ):
        open_store(store.folder)
    assert prepare(root, cache)[1][-1:] == [(8, 8)]
    assert (store.folder / name).read_bytes()[-50:] == whole[-50:]


def test_a_store_of_another_format_is_refused(root: Path, cache: Path) -> None:
    store, _ = prepare(root, cache)
    manifest = store.folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))

    with pytest.raises(DataError, match="no whole store of decoded images"):
        open_store(store.folder)


def test_a_cache_that_cannot_be_written_is_told(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SearchError, match="decoded images cannot be kept there: Not a directory"):
        prepare(root, tmp_path / "file" / "cache")


def _count_decodings(root: Path, cache: Path, barrier: object, counts: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    counts.put(prepare(root, cache)[1].count((8, 8)))  # type: ignore[attr-defined]


def test_two_starts_decode_once(root: Path, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, counts = context.Barrier(2), context.SimpleQueue()
    arguments = (root, cache, barrier, counts)
    processes = [context.Process(target=_count_decodings, args=arguments) for _ in range(2)]

    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert sorted([counts.get(), counts.get()]) == [0, 1]


def test_channel_statistics_are_those_of_the_pixels(root: Path, cache: Path) -> None:
    store, _ = prepare(root, cache)
    rows = np.array([0, 3, 7], dtype=np.int64)

    means, stds = channel_statistics(store, rows)

    pixels = store.unpadded(rows) / 255
    np.testing.assert_allclose(means, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(stds, pixels.std(axis=(0, 1, 2)), rtol=1e-9)


def test_channel_statistics_never_hold_the_images_in_memory(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = prepare(root, cache, image_size=128)
    rows = np.repeat(np.arange(8), 20)
    expected = channel_statistics(store, rows)
    # A count of bytes needs eight times their memory, for one of three channels at a time.
    monkeypatch.setattr(statistics, "_CHUNK_BYTES", 4 * store.images[:1].nbytes)

    tracemalloc.start()
    found = channel_statistics(store, rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found == expected
    assert peak < 6 * statistics._CHUNK_BYTES < store.images[rows].nbytes


def test_a_channel_without_contrast_is_not_divided_by_nothing(
    make_pictures: MakePictures, cache: Path
) -> None:
    root = make_pictures("a/1.png", "b/1.png", mode="1", size=(1, 1))
    store, _ = prepare(root, cache)
    store.images[:] = 51

    assert channel_statistics(store, np.arange(2)) == ((0.2,), (1.0,))


def n_pages_in_memory(store: ImageStore) -> int:
    """Count the pages of the pixels that a page fault need not read, by `mincore`."""
    assert isinstance(store.images, np.memmap)
    size = store.images[:].nbytes + store.images.offset
    n_pages = -(-size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * n_pages)()
    with (store.folder / "images.npy").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found) == 0
    return sum(each & 1 for each in found)


@pytest.mark.skipif(not hasattr(mmap.mmap, "madvise"), reason="needs madvise")
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_announced_images_are_read_before_anybody_looks_at_them(
    make_pictures: MakePictures, cache: Path
) -> None:
    names = [f"{name}/{number}.png" for name in "ab" for number in range(40)]
    store, _ = prepare(make_pictures(*names), cache, image_size=128)
    with (store.folder / "images.npy").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = n_pages_in_memory(store)

    store.announce(np.arange(0, 80, 2))

    pages = store.images[:40].nbytes // mmap.PAGESIZE
    for _ in range(100):
        if n_pages_in_memory(store) >= before + pages // 2:
            break
        time.sleep(0.05)
    if before > pages:
        pytest.skip("the file system keeps everything in memory")
    assert n_pages_in_memory(store) >= before + pages // 2


def test_the_wait_for_another_process_that_decodes_can_be_ended(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_WAIT_SECONDS", 0.01)
    folder = prepare(root, cache)[0].folder
    shutil.rmtree(folder)

    def stop(n_done: int, n_images: int) -> None:
        assert (n_done, n_images) == (0, 8)
        raise SystemExit(130)

    with FileLock(folder.with_suffix(".lock")), pytest.raises(SystemExit):
        prepare_store(read_folder(root), cache_folder=cache, on_progress=stop)

    assert not folder.exists()

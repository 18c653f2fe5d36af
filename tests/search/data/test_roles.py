import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.data.listing import GIVEN, Given
from search.data.roles import ROLES, Roles, assign_roles, read_roles, write_roles
from search.data.store import FORMAT_VERSION, ImageStore, Manifest
from search.errors import DataError

TRAIN: Given = "train"
VAL: Given = "val"
TEST: Given = "test"


def store_of(
    labels: Sequence[int],
    *,
    contents: Sequence[int] | None = None,
    given: Sequence[Given] | None = None,
    groups: Sequence[int] | None = None,
) -> ImageStore:
    """A store of images without pixels; the same content number makes duplicates."""
    n_images = len(labels)
    codes = [GIVEN.index(name) for name in given] if given else [0] * n_images
    return ImageStore(
        folder=Path(),
        manifest=Manifest(
            format_version=FORMAT_VERSION,
            class_names=tuple("abcdefgh"[: max(labels) + 1]),
            size=4,
            channels=1,
            pad=1,
            fit="crop",
            fingerprint="",
            skipped=(),
        ),
        images=np.zeros((n_images, 6, 6, 1), dtype=np.uint8),
        labels=np.array(labels, dtype=np.int64),
        hashes=np.array(range(n_images) if contents is None else contents, dtype=np.uint64),
        given=np.array(codes, dtype=np.uint8),
        groups=None if groups is None else np.array(groups, dtype=np.int64),
    )


def role_of_each_image(roles: Roles, n_images: int) -> np.ndarray:
    names = np.full(n_images, "none", dtype="U8")
    for role in (*ROLES, "dropped", "unused"):
        rows = getattr(roles, role)
        assert (names[rows] == "none").all(), "an image has two roles"
        names[rows] = role
    return names


def counts(roles: Roles) -> list[int]:
    return [len(roles.rows(role)) for role in ROLES]


sizes_of_classes = st.lists(st.integers(10, 60), min_size=2, max_size=5)


@settings(deadline=None)
@given(sizes=sizes_of_classes, seed=st.integers(0, 2**32))
def test_roles_are_disjoint_cover_everything_and_hold_the_shares_of_every_class(
    sizes: list[int], seed: int
) -> None:
    store = store_of(np.repeat(range(len(sizes)), sizes).tolist())

    roles = assign_roles(store, seed=seed)

    names = role_of_each_image(roles, len(store))
    assert "none" not in names
    for label, size in enumerate(sizes):
        for role, share in zip(ROLES, (0.7, 0.1, 0.1, 0.1), strict=True):
            mine = ((names == role) & (store.labels == label)).sum()
            assert abs(mine - share * size) <= 1


@settings(deadline=None)
@given(
    sizes=sizes_of_classes,
    seed=st.integers(0, 2**32),
    contents=st.integers(20, 200),
    order_seed=st.integers(0, 2**32),
)
def test_the_order_of_the_images_does_not_matter(
    sizes: list[int], seed: int, contents: int, order_seed: int
) -> None:
    labels = np.repeat(range(len(sizes)), sizes)
    rng = np.random.default_rng(order_seed)
    content = labels * 1000 + rng.integers(0, contents, len(labels))
    order = rng.permutation(len(labels))

    straight = outcome(store_of(labels.tolist(), contents=content.tolist()), seed)
    shuffled = outcome(store_of(labels[order].tolist(), contents=content[order].tolist()), seed)

    assert straight == shuffled


def outcome(store: ImageStore, seed: int) -> tuple[object, str]:
    """The role of each content, and the fingerprint; or the error."""
    try:
        roles = assign_roles(store, seed=seed)
    except DataError:
        return "too few", ""
    names = role_of_each_image(roles, len(store))
    return dict(zip(store.hashes.tolist(), names.tolist(), strict=True)), roles.fingerprint


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), content_seed=st.integers(0, 2**32))
def test_duplicates_and_groups_stay_together(seed: int, content_seed: int) -> None:
    n_images = 200
    rng = np.random.default_rng(content_seed)
    labels = np.arange(n_images) % 2
    contents = rng.integers(0, 1000, n_images)
    groups = rng.integers(0, 100, n_images)
    store = store_of(labels.tolist(), contents=contents.tolist(), groups=groups.tolist())

    names = role_of_each_image(assign_roles(store, seed=seed), n_images)

    for numbers in (contents, groups):
        for number in np.unique(numbers):
            assert len(set(names[numbers == number].tolist())) == 1


def test_an_image_keeps_its_role_when_others_are_added() -> None:
    few = store_of([0, 1] * 500)
    many = store_of([0, 1] * 600)

    before = role_of_each_image(assign_roles(few, seed=3), 1000)
    after = role_of_each_image(assign_roles(many, seed=3), 1200)[:1000]

    assert (before == after).mean() > 0.9  # only those near a cut change sides


def test_another_seed_gives_other_roles() -> None:
    store = store_of([0, 1] * 100)

    first, second = (assign_roles(store, seed=seed) for seed in (0, 1))

    assert first.test.tolist() != second.test.tolist()
    assert first.fingerprint != second.fingerprint
    assert assign_roles(store, seed=0).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["none"] * 200, [140, 20, 20, 20]),
        (["train"] * 200, [140, 20, 20, 20]),
        (["train"] * 180 + ["test"] * 20, [140, 20, 20, 20]),
        (["train"] * 160 + ["val"] * 40, [140, 20, 20, 20]),
        (["train"] * 120 + ["val"] * 60 + ["test"] * 20, [120, 30, 30, 20]),
    ],
)
def test_given_splits_are_kept_and_what_is_missing_is_shared_out(
    given: list[Given], expected: list[int]
) -> None:
    store = store_of([0, 1] * 100, given=given)

    roles = assign_roles(store, seed=0)

    assert counts(roles) == expected
    names = role_of_each_image(roles, 200)
    if "test" in given:
        assert (np.array(given) == "test").tolist() == (names == "test").tolist()
    if "val" in given:
        assert (np.array(given) == "val").tolist() == np.isin(names, ["stop", "ens"]).tolist()


def test_small_classes_have_one_image_in_every_role() -> None:
    roles = assign_roles(store_of([0] * 4 + [1] * 5), seed=0)

    assert counts(roles) == [3, 2, 2, 2]


def test_a_leak_between_given_splits_is_dropped_from_the_earlier_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = [TRAIN] * 10 + [VAL] * 10 + [TEST] * 10
    contents = list(range(30))
    contents[0] = contents[20]  # train and test
    contents[1] = contents[10]  # train and val
    contents[12] = contents[23]  # val and test
    contents[21] = contents[25]  # twice in test
    store = store_of([0, 1] * 15, contents=contents, given=given)

    with caplog.at_level(logging.WARNING):
        roles = assign_roles(store, seed=0)

    assert roles.dropped.tolist() == [0, 1, 12]
    assert roles.train.tolist() == list(range(2, 10))
    assert roles.test.tolist() == list(range(20, 30))
    assert "3 images are in two of the given splits; dropped from the earlier one" in caplog.text


@settings(deadline=None)
@given(sizes=sizes_of_classes, seed=st.integers(0, 1000), data=st.data())
def test_a_smaller_limit_is_a_subset_with_the_same_shares(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    store = store_of(np.repeat(range(len(sizes)), sizes).tolist())
    whole = assign_roles(store, seed=seed)
    limits = st.integers(len(sizes), len(whole.train))
    small, large = sorted([data.draw(limits), data.draw(limits)])

    fewer, more = (assign_roles(store, seed=seed, limit_train=limit) for limit in (small, large))

    assert (len(fewer.train), len(more.train)) == (small, large)
    assert set(fewer.train.tolist()) <= set(more.train.tolist()) <= set(whole.train.tolist())
    assert len(fewer.unused) + small == len(whole.train)
    for role in ("stop", "ens", "test"):
        assert fewer.rows(role).tolist() == whole.rows(role).tolist()
    everyone = np.bincount(store.labels[whole.train])
    kept = np.bincount(store.labels[fewer.train], minlength=len(sizes))
    assert (kept >= 1).all()
    fair = np.maximum(everyone * small / everyone.sum(), 1)  # no class goes empty, at others' cost
    assert (np.abs(kept - fair) <= 1.5 + fair.sum() - small).all()


def test_a_limit_above_the_number_of_images_changes_nothing() -> None:
    store = store_of([0, 1] * 50)

    limited = assign_roles(store, seed=0, limit_train=10_000)

    assert limited.fingerprint == assign_roles(store, seed=0).fingerprint
    assert limited.sizes() == {"train": 70, "stop": 10, "ens": 10, "test": 10}


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (store_of([0] * 20 + [1] * 3), "class 'b' has 3 images: none is left for the test role"),
        (
            store_of([0] * 20 + [1] * 9, contents=[*range(20), *[99] * 9]),
            "class 'b' has 9 images, 1 of them different: none is left for the stop role",
        ),
        (
            store_of([0] * 20 + [1] * 8, groups=[*range(20), *[30, 31] * 4]),
            "class 'b' has 8 images, in 2 groups: none is left for the ens role",
        ),
        (
            store_of([0, 1] * 10 + [0], given=[TRAIN] * 20 + [TEST]),
            "class 'b' has 10 images: none is left for the test role; each of train, stop, ens",
        ),
    ],
)
def test_a_class_with_too_few_images_is_named(store: ImageStore, message: str) -> None:
    with pytest.raises(DataError, match=message):
        assign_roles(store, seed=0)


def test_a_limit_below_the_number_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match="limit_train must be at least 3, one image of each class"):
        assign_roles(store_of([0, 1, 2] * 20), seed=0, limit_train=2)


def test_roles_are_read_as_they_were_written(tmp_path: Path) -> None:
    roles = assign_roles(store_of([0, 1] * 50), seed=0, limit_train=20)

    write_roles(tmp_path / "roles.npz", roles)
    read = read_roles(tmp_path / "roles.npz")

    for name in (*ROLES, "dropped", "unused"):
        np.testing.assert_array_equal(getattr(read, name), getattr(roles, name))
    assert read.fingerprint == roles.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["roles.npz"]


def test_a_damaged_file_of_roles_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "roles.npz"
    with pytest.raises(DataError, match="roles of the images cannot be read"):
        read_roles(path)

    write_roles(path, assign_roles(store_of([0, 1] * 50), seed=0))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="roles of the images cannot be read"):
        read_roles(path)

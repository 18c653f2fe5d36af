import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from ensembles.bundle import load_bundle
from ensembles.cascade import Cascade, Stage
from ensembles.combination import Combination
from ensembles.conformal import Conformal, Rejection
from ensembles.decision import Decision
from ensembles.errors import BundleError
from ensembles.images import ImageError
from ensembles.predictor import images_at_once

WriteBundle = Callable[..., Path]
Change = Callable[[Path], object]


def make_pictures(n_pictures: int, size: int = 8) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return list(generator.integers(0, 256, (n_pictures, size, size, 3), dtype=np.uint8))


def reseal(folder: Path, name: str) -> None:
    """Write the size and hash of a changed file into the manifest, as a forger would."""
    content = (folder / name).read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    for record in [*manifest["members"], manifest["self_test"]]:
        if record["file"] == name:
            record["n_bytes"] = len(content)
            record["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_tensors(folder: Path, name: str, **changes: torch.Tensor | None) -> None:
    tensors = safetensors.torch.load((folder / name).read_bytes())
    for key, value in changes.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    (folder / name).write_bytes(safetensors.torch.save(tensors))
    reseal(folder, name)


def test_probabilities_sum_to_one_and_follow_the_weights(write_tiny_bundle: WriteBundle) -> None:
    pictures = make_pictures(4)
    first = load_bundle(write_tiny_bundle("first", weights=(1.0,)))
    both = load_bundle(write_tiny_bundle("both", weights=(0.25, 0.75)))
    last = load_bundle(write_tiny_bundle("last", weights=(0.0, 1.0)))

    expected = 0.25 * first.predict(pictures) + 0.75 * last.predict(pictures)

    np.testing.assert_allclose(both.predict(pictures), expected, atol=1e-6)
    np.testing.assert_allclose(expected.sum(axis=1), 1.0, atol=1e-6)


def test_a_file_its_bytes_and_its_pixels_give_the_same(
    tmp_path: Path, write_tiny_bundle: WriteBundle
) -> None:
    bundle = load_bundle(write_tiny_bundle())
    pixels = make_pictures(1, size=20)[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")

    file = tmp_path / "a.png"
    rows = bundle.predict([pixels, Image.fromarray(pixels), file, str(file), file.read_bytes()])

    np.testing.assert_allclose(rows, np.repeat(rows[:1], 5, axis=0), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7])
def test_order_and_values_do_not_depend_on_the_batches(
    write_tiny_bundle: WriteBundle, batch_size: int
) -> None:
    bundle = load_bundle(write_tiny_bundle())
    pictures = make_pictures(5)

    rows = bundle.predict(iter(pictures), batch_size=batch_size)

    np.testing.assert_allclose(rows, bundle.predict(pictures), atol=1e-6)


def test_no_pictures_give_no_rows(write_tiny_bundle: WriteBundle) -> None:
    assert load_bundle(write_tiny_bundle()).predict([]).shape == (0, 3)


def test_a_picture_that_cannot_be_read_does_not_stop_the_rest(
    tmp_path: Path, write_tiny_bundle: WriteBundle
) -> None:
    bundle = load_bundle(write_tiny_bundle())
    good = make_pictures(2)
    (tmp_path / "bad.png").write_bytes(b"no picture")

    results = list(bundle.predict_each([good[0], tmp_path / "bad.png", good[1]]))

    assert [bool(result.problem) for result in results] == [False, True, False]
    assert results[1].log_probabilities is None
    np.testing.assert_allclose(
        [results[0].probabilities, results[2].probabilities], bundle.predict(good), atol=1e-6
    )
    with pytest.raises(ImageError, match=r"bad\.png: not a picture"):
        bundle.predict([tmp_path / "bad.png"])


def test_pixels_that_are_no_picture_are_named_by_their_type(
    write_tiny_bundle: WriteBundle,
) -> None:
    with pytest.raises(ImageError, match="ndarray: an array of pixels must be uint8"):
        load_bundle(write_tiny_bundle()).predict([np.zeros((8, 8, 3))])


def test_large_inputs_run_in_smaller_batches(write_tiny_bundle: WriteBundle) -> None:
    assert load_bundle(write_tiny_bundle()).default_batch_size == 500
    assert [images_at_once(size) for size in (64, 224, 4000)] == [500, 83, 1]


def test_members_run_without_gradients_and_in_eval_mode(write_tiny_bundle: WriteBundle) -> None:
    bundle = load_bundle(write_tiny_bundle())

    for network in bundle.predictor.networks:
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not any(value.is_meta for value in network.state_dict().values())


@pytest.mark.slow
def test_a_moved_bundle_predicts_the_same_in_a_fresh_process_without_optuna(
    tmp_path: Path, write_tiny_bundle: WriteBundle
) -> None:
    folder = write_tiny_bundle()
    pictures = make_pictures(3)
    np.save(tmp_path / "pictures.npy", np.stack(pictures))
    np.save(tmp_path / "expected.npy", load_bundle(folder).predict(pictures))
    (tmp_path / "elsewhere").mkdir()
    folder.rename(tmp_path / "elsewhere" / "moved")
    code = (
        "import sys, numpy\n"
        "from ensembles.bundle import load_bundle\n"
        "rows = load_bundle('elsewhere/moved').predict(list(numpy.load('pictures.npy')))\n"
        "assert numpy.abs(rows - numpy.load('expected.npy')).max() < 1e-5\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'optuna', 'sklearn', 'search', 'pickle5'}, loaded\n"
    )
    root = Path(__file__).parents[2]

    outcome = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert outcome.returncode == 0, outcome.stderr


def _flip_a_byte(folder: Path) -> None:
    path = folder / "members/00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _link_a_member(folder: Path) -> None:
    path = folder / "members/00001.safetensors"
    path.rename(folder.parent / "outside")
    path.symlink_to(folder.parent / "outside")


def _link_all_members(folder: Path) -> None:
    (folder / "members").rename(folder.parent / "outside")
    (folder / "members").symlink_to(folder.parent / "outside")


def _circle(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to(folder / "manifest.json")


def _pipe(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


def _pickle(folder: Path) -> None:
    name = "members/00001.safetensors"
    (folder / name).write_bytes(b"\x80\x04cos\nsystem\n")
    reseal(folder, name)


def _huge_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 2**30)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "self_test.safetensors").unlink(), "self_test.* is missing"),
        (
            lambda folder: (folder / "members/00001.safetensors").unlink(),
            r"members/00001.safetensors is missing",
        ),
        (
            lambda folder: os.truncate(folder / "members/00001.safetensors", 100),
            "has 100 bytes instead of",
        ),
        (
            lambda folder: os.truncate(folder / "members/00001.safetensors", 10**6),
            "is larger than",
        ),
        (_flip_a_byte, "was changed: its SHA-256"),
        (_link_a_member, "is a link or not a plain file"),
        (_link_all_members, "is a link or not a plain file"),
        (_circle, r"manifest.json (cannot be read|is a link)"),
        (_pipe, "is a link or not a plain file"),
        (_pickle, "is not a safetensors file"),
        (_huge_manifest, "manifest.json is larger than"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused_in_one_line(
    write_tiny_bundle: WriteBundle, change: Change, problem: str
) -> None:
    folder = write_tiny_bundle()
    change(folder)

    with pytest.raises(BundleError, match=problem) as caught:
        load_bundle(folder)

    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere is not a bundle: no such folder"):
        load_bundle(tmp_path / "nowhere")


def test_a_bundle_may_be_reached_through_a_link(
    tmp_path: Path, write_tiny_bundle: WriteBundle
) -> None:
    (tmp_path / "latest").symlink_to(write_tiny_bundle())

    assert load_bundle(tmp_path / "latest").classes == ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"linear.weight": None}, r"does not fit its architecture: linear.weight"),
        ({"extra": torch.zeros(1)}, "does not fit its architecture: extra"),
        ({"linear.weight": torch.zeros(3, 6)}, r"must be torch.float32 \(3, 5\), got .* \(3, 6\)"),
        (
            {"linear.weight": torch.zeros(3, 5, dtype=torch.float64)},
            r"must be torch.float32 \(3, 5\), got torch.float64",
        ),
        ({"linear.weight": torch.zeros(3, 5)}, "fails its self-test: .* differ by"),
        ({"linear.weight": torch.full((3, 5), torch.nan)}, "fails its self-test: .* by nan"),
    ],
)
def test_forged_weights_are_refused(
    write_tiny_bundle: WriteBundle, changes: dict[str, torch.Tensor | None], problem: str
) -> None:
    folder = write_tiny_bundle()
    change_tensors(folder, "members/00001.safetensors", **changes)

    with pytest.raises(BundleError, match=problem):
        load_bundle(folder)


def test_the_self_test_can_be_left_out(write_tiny_bundle: WriteBundle) -> None:
    folder = write_tiny_bundle()
    change_tensors(folder, "self_test.safetensors", probabilities=torch.zeros(3, 3))

    assert load_bundle(folder, check=False).classes == ("cat", "dog", "owl")
    with pytest.raises(BundleError, match="fails its self-test"):
        load_bundle(folder)


def test_a_self_test_of_another_shape_is_refused(write_tiny_bundle: WriteBundle) -> None:
    folder = write_tiny_bundle()
    change_tensors(folder, "self_test.safetensors", images=torch.zeros(3, 4, 4, 3))

    with pytest.raises(BundleError, match=r"images must be torch.uint8"):
        load_bundle(folder)


def make_cascade(threshold: float) -> Cascade:
    """Return a cascade of the tiny bundle's members, the second one first."""
    alone = Combination(method="greedy", space="probability", weights=(1.0,))
    both = Combination(method="greedy", space="probability", weights=(0.75, 0.25))
    return Cascade(
        order=(1, 0),
        stages=(
            Stage(combination=alone, threshold=threshold),
            Stage(combination=both, threshold=0.0),
        ),
    )


def test_a_cascade_stops_for_the_sure_and_ends_with_the_ensemble_for_the_rest(
    write_tiny_bundle: WriteBundle,
) -> None:
    pictures = make_pictures(40)
    second = load_bundle(write_tiny_bundle("second", weights=(0.0, 1.0))).predict(pictures)
    threshold = float(np.median(second.max(axis=1)))
    bundle = load_bundle(write_tiny_bundle(cascade=make_cascade(threshold)))

    found = list(bundle.predict_each(pictures, cascade=True, batch_size=7))

    sure = second.max(axis=1) >= threshold
    assert [each.n_members_run for each in found] == [1 if each else 2 for each in sure]
    expected = np.where(sure[:, None], second, bundle.predict(pictures))
    np.testing.assert_allclose([each.probabilities for each in found], expected, atol=1e-6)
    assert 0 < sure.sum() < len(sure)


def test_without_being_asked_for_the_cascade_does_not_run(write_tiny_bundle: WriteBundle) -> None:
    pictures = make_pictures(3)
    plain = load_bundle(write_tiny_bundle("plain"))
    bundle = load_bundle(write_tiny_bundle(cascade=make_cascade(0.0)))

    np.testing.assert_allclose(bundle.predict(pictures), plain.predict(pictures), atol=1e-6)
    assert {each.n_members_run for each in bundle.predict_each(pictures)} == {None}
    for ask in (plain.predict, lambda *words, **flags: list(plain.predict_each(*words, **flags))):
        with pytest.raises(BundleError, match="has no cascade"):
            ask(pictures, cascade=True)


def test_sets_and_answers_are_those_of_the_thresholds(write_tiny_bundle: WriteBundle) -> None:
    pictures = make_pictures(30)
    rows = load_bundle(write_tiny_bundle("plain")).predict(pictures)
    lowest, highest = float(np.quantile(rows, 0.3)), float(np.median(rows.max(axis=1)))
    bundle = load_bundle(
        write_tiny_bundle(
            conformal=Conformal(alpha=0.1, threshold=lowest, n_images=100),
            rejection=Rejection(
                threshold=highest, target_accuracy=0.9, coverage=0.5, n_images=100
            ),
        )
    )

    found = list(bundle.predict_each(pictures))

    for each, row in zip(found, rows, strict=True):
        order = np.argsort(-row)
        wanted = tuple(bundle.classes[index] for index in order if row[index] >= lowest)
        assert each.possible_classes == (wanted or (bundle.classes[order[0]],))
        assert each.is_answered == (row.max() >= highest)


def test_a_cascade_that_does_not_fit_its_members_is_refused(
    write_tiny_bundle: WriteBundle,
) -> None:
    folder = write_tiny_bundle(cascade=make_cascade(0.5))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cascade"]["order"] = [0]
    manifest["cascade"]["stages"] = [{**manifest["cascade"]["stages"][0], "threshold": 0.0}]
    (folder / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match="cascade: 1 positions for 2 members"):
        load_bundle(folder)


def test_a_bundle_that_prefers_its_cascade_runs_it_unless_told_otherwise(
    write_tiny_bundle: WriteBundle,
) -> None:
    pictures = make_pictures(6)
    bundle = load_bundle(write_tiny_bundle(cascade=make_cascade(0.0), prefers_cascade=True))
    second = load_bundle(write_tiny_bundle("second", weights=(0.0, 1.0)))
    both = load_bundle(write_tiny_bundle("both"))

    np.testing.assert_allclose(bundle.predict(pictures), second.predict(pictures), atol=1e-6)
    np.testing.assert_allclose(
        bundle.predict(pictures, cascade=False), both.predict(pictures), atol=1e-6
    )
    np.testing.assert_allclose(
        both.predict(pictures, cascade=False), both.predict(pictures), atol=1e-12
    )


@pytest.mark.parametrize("cascade", [False, True])
def test_labels_are_those_of_the_decision_rule(
    write_tiny_bundle: WriteBundle, *, cascade: bool
) -> None:
    pictures = make_pictures(30)
    priors = (0.98, 0.01, 0.01)
    plain = load_bundle(write_tiny_bundle("plain", cascade=make_cascade(0.5)))
    fair = load_bundle(
        write_tiny_bundle(
            "fair",
            cascade=make_cascade(0.5),
            decision=Decision(rule="prior_corrected", priors=priors),
        )
    )
    rows = plain.predict(pictures, cascade=cascade)

    usual = [each.label for each in plain.predict_each(pictures, cascade=cascade)]
    corrected = [each.label for each in fair.predict_each(pictures, cascade=cascade)]

    assert usual == [plain.classes[number] for number in rows.argmax(axis=1)]
    assert corrected == [fair.classes[number] for number in (rows / priors).argmax(axis=1)]
    assert usual != corrected


def test_a_picture_that_cannot_be_read_has_no_label(write_tiny_bundle: WriteBundle) -> None:
    (found,) = load_bundle(write_tiny_bundle()).predict_each([b"no picture"])

    assert found.label is None


def change_manifest(folder: Path, change: Callable[[Any], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_self_test_covers_every_stage_of_the_cascade(write_tiny_bundle: WriteBundle) -> None:
    cascade = make_cascade(0.5)
    sharper = Combination(method="greedy", space="probability", weights=(1.0,), temperature=0.5)
    folder = write_tiny_bundle(cascade=cascade)

    def sharpen(manifest: Any) -> None:
        manifest["cascade"]["stages"][0]["combination"] = sharper.to_json()

    change_manifest(folder, sharpen)

    with pytest.raises(BundleError, match="fails its self-test: its stages differ by"):
        load_bundle(folder)


def test_a_self_test_without_the_stages_is_refused(write_tiny_bundle: WriteBundle) -> None:
    folder = write_tiny_bundle(cascade=make_cascade(0.5))
    change_tensors(folder, "self_test.safetensors", stages=None)

    with pytest.raises(BundleError, match=r"self_test.safetensors does not fit .*: stages"):
        load_bundle(folder)


def write_version_1(folder: Path) -> None:
    """Turn a bundle into what version 1 wrote: members are trials, and files are named by them."""

    def downgrade(manifest: Any) -> None:
        manifest["format_version"] = 1
        for trial, member in enumerate(manifest["members"], start=40):
            file = f"members/{trial:05d}.safetensors"
            (folder / member["file"]).rename(folder / file)
            for key in ("name", "cost"):
                del member[key]
            member.update(trial=trial, file=file)
        for key in ("decision", "prefers_cascade"):
            del manifest[key]

    if "stages" in safetensors.torch.load((folder / "self_test.safetensors").read_bytes()):
        change_tensors(folder, "self_test.safetensors", stages=None)
    change_manifest(folder, downgrade)


@pytest.mark.parametrize("extras", [{}, {"cascade": make_cascade(0.5)}])
def test_a_bundle_of_version_1_predicts_as_ever(
    write_tiny_bundle: WriteBundle, extras: dict[str, Any]
) -> None:
    pictures = make_pictures(5)
    folder = write_tiny_bundle(**extras)
    bundle = load_bundle(folder)
    expected = {flag: bundle.predict(pictures, cascade=flag) for flag in (False, bool(extras))}

    write_version_1(folder)

    old = load_bundle(folder)
    assert [member.name for member in old.manifest.members] == ["40", "41"]
    for flag, rows in expected.items():
        np.testing.assert_array_equal(old.predict(pictures, cascade=flag), rows)

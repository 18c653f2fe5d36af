import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensembles.errors import BundleError
from ensembles.manifest import manifest_from_text, manifest_to_text

WriteBundle = Callable[..., Path]
Change = Callable[[Any], object]


@pytest.fixture
def text(write_tiny_bundle: WriteBundle) -> str:
    return (write_tiny_bundle() / "manifest.json").read_text()


def test_what_is_written_reads_back_as_the_same_manifest(text: str) -> None:
    manifest = manifest_from_text(text)

    assert manifest_to_text(manifest) == text
    assert manifest_from_text(text.encode()) == manifest


def test_the_task_follows_from_input_and_classes(text: str) -> None:
    task = manifest_from_text(text).task

    assert (task.image_size, task.channels, task.n_classes) == (8, 3, 3)


def _replace(*path: str | int, by: object) -> Change:
    def change(values: Any) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = by

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_replace("surprise", by=1), "surprise: Extra inputs are not permitted, got 1"),
        (_replace("members", 0, "surprise", by=1), r"members.0.surprise: Extra inputs"),
        (_replace("members", 0, "architecture", "x", by=1), r"members.0.architecture.x: Unexp"),
        (_replace("image_input", "x", by=1), r"image_input.x: Unexpected keyword"),
        (_replace("combination", "x", by=1), r"combination.x: Unexpected keyword"),
        (_replace("format", by="zip"), "format: Input should be .*; it is not a bundle"),
        (_replace("format_version", by=2), "format_version: Input should be 1, got 2; it is n"),
        (_replace("classes", by=["one"]), "classes: Tuple should have at least 2 items"),
        (_replace("classes", by=["a", "a", "b"]), "classes: the names must differ"),
        (_replace("classes", 0, by=7), r"classes.0: Input should be a valid string, got 7"),
        (_replace("created", by="yesterday"), "created: Input should be a valid datetime"),
        (_replace("members", by=[]), "members: Tuple should have at least 1 item"),
        (_replace("members", 0, "file", by="members/00001.safetensors"), "files must differ"),
        (_replace("members", 0, "file", by="members/../../x"), r"members.0.file: String should"),
        (_replace("members", 0, "file", by="/etc/passwd"), r"members.0.file: String should"),
        (
            _replace("members", 0, "file", by="members/00000.safetensors\n"),
            r"members.0.file: String should",
        ),
        (_replace("members", 0, "sha256", by="0" * 63), r"members.0.sha256: String should"),
        (_replace("members", 0, "n_bytes", by=10**12), r"members.0.n_bytes: Input should be less"),
        (_replace("members", 0, "n_bytes", by="9"), r"members.0.n_bytes: Input should be a valid"),
        (
            _replace("members", 0, "architecture", "family", by="os.system"),
            r"members.0.architecture.family: Input should be 'plain' or 'residual'",
        ),
        (
            _replace("members", 0, "architecture", "stages", 0, "kernel_size", by=4),
            "manifest.json: stage.kernel_size must be",
        ),
        (
            _replace("members", 0, "architecture", "stages", 0, "n_convolutions", by=10**9),
            r"members.0: a network may have 1000 convolutions, got 1000000000",
        ),
        (_replace("combination", "weights", by=[1.0]), "combination: 1 weights for 2 members"),
        (_replace("combination", "weights", by=[0.5, 0.6]), "must sum to 1"),
        (_replace("combination", "weights", by=["0.5", "0.5"]), r"combination.weights.0: Input"),
        (_replace("image_input", "size", by=3), "manifest.json: an input needs a size"),
        (_replace("image_input", "size", by=4097), "image_input: size may be 4096 pixels"),
        (_replace("image_input", "mean", by=[0.5]), "image_input: 3 channels need as many means"),
        (_replace("image_input", "std", by=[1, 1, 0]), "image_input: deviations must be above 0"),
        (_replace("self_test", "file", by="../x"), r"self_test.file: Input should be 'self_test"),
        (_replace("self_test", "tolerance", by=1.0), r"self_test.tolerance: Input should be less"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(text: str, change: Change, problem: str) -> None:
    values = json.loads(text)
    change(values)

    with pytest.raises(BundleError, match=problem) as caught:
        manifest_from_text(json.dumps(values))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["classes", "combination", "format", "format_version", "image_input", "members", "self_test"],
)
def test_a_missing_key_is_named(text: str, key: str) -> None:
    values = json.loads(text)
    del values[key]

    with pytest.raises(BundleError, match=f"{key}: Field required"):
        manifest_from_text(json.dumps(values))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused_everywhere(text: str, number: str) -> None:
    values = text.replace('"logit_scale": 1.0', f'"logit_scale": {number}')

    with pytest.raises(BundleError, match=r"finite|above 0"):
        manifest_from_text(values)


def test_biases_of_a_stack_must_match_the_classes(text: str) -> None:
    values = json.loads(text)
    values["combination"] = {
        "method": "stack",
        "space": "stack",
        "weights": [0.5, 0.5],
        "class_weights": [[1, 1], [1, 1]],
        "class_biases": [0, 0],
    }

    with pytest.raises(BundleError, match="2 biases for 3 classes"):
        manifest_from_text(json.dumps(values))


@pytest.mark.parametrize("broken", ["", "{", "[" * 100_000, "\ud83d", b"\xff\xfe", "null"])
def test_text_that_is_no_manifest_gives_one_line(broken: str | bytes) -> None:
    with pytest.raises(BundleError) as caught:
        manifest_from_text(broken)

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200

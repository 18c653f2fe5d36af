import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensembles.errors import BundleError
from ensembles.manifest import manifest_from_text, manifest_to_text

WriteBundle = Callable[..., Path]
Change = Callable[[Any], object]


COST = {"milliseconds_1": 1.0, "milliseconds_32": 9.0, "n_parameters": 5, "n_bytes": 20}
REJECTION = {"threshold": 0.5, "target_accuracy": 0.9, "coverage": 0.7, "n_images": 100}
PRIORS = {"rule": "prior_corrected", "priors": [0.5, 0.25, 0.25]}


def _stage(*weights: float, at: float = 0.0) -> dict[str, object]:
    combination = {"method": "greedy", "space": "probability", "weights": weights}
    return {"combination": combination, "threshold": at}


LAST = _stage(0.25, 0.75)


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
        (_replace("format_version", by=3), "format_version: Input should be 1 or 2, got 3; it is"),
        (_replace("classes", by=["one"]), "classes: Tuple should have at least 2 items"),
        (_replace("classes", by=["a", "a", "b"]), "classes: the names must differ"),
        (_replace("classes", 0, by=7), r"classes.0: Input should be a valid string, got 7"),
        (_replace("created", by="yesterday"), "created: Input should be a valid datetime"),
        (_replace("members", by=[]), "members: Tuple should have at least 1 item"),
        (_replace("members", 0, "file", by="members/00001.safetensors"), "files must differ"),
        (_replace("members", 0, "name", by="1"), "members: the names must differ"),
        (_replace("members", 0, "name", by="../1"), r"members.0.name: String should match"),
        (_replace("members", 0, "name", by="--help"), r"members.0.name: String should match"),
        (_replace("members", 0, "name", by="a" * 41), r"members.0.name: String should match"),
        (_replace("members", 0, "name", by="1\n"), r"members.0.name: String should match"),
        (_replace("members", 0, "trial", by=1), r"members.0.trial: Extra inputs"),
        (_replace("members", 0, "cost", by={}), r"members.0.cost.milliseconds_1: Field required"),
        (
            _replace("members", 0, "cost", by={**COST, "milliseconds_1": -1.0}),
            "manifest.json: a cost needs times above 0",
        ),
        (_replace("members", 0, "cost", by={**COST, "x": 1}), r"members.0.cost.x: Unexpected"),
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
        (_replace("decision", "rule", by="guess"), "decision.rule: Input should be 'most_proba"),
        (
            _replace("decision", by={"rule": "prior_corrected", "priors": [0.5, 0.5]}),
            "decision: 2 class shares for 3 classes",
        ),
        (
            _replace("decision", by={"rule": "prior_corrected", "priors": [1, 1, -1]}),
            "manifest.json: prior_corrected needs the share of each",
        ),
        (_replace("prefers_cascade", by=True), "prefers_cascade: there is no cascade"),
        (_replace("cascade", by={"order": [1, 0], "stages": []}), "needs stages of more and mo"),
        (
            _replace("cascade", by={"order": [1, 0], "stages": [_stage(0.5, 0.5)]}),
            "its last stage must combine all members as the ensemble does",
        ),
        (
            _replace("cascade", by={"order": [0, 1], "stages": [_stage(1.0, at=1.5), LAST]}),
            "a threshold must lie between 0 and 1, got 1.5",
        ),
        (
            _replace("cascade", by={"order": [0, 1], "stages": [LAST, _stage(1.0)]}),
            r"up to 2, got \[2, 1\]",
        ),
        (
            _replace("cascade", by={"order": [0], "stages": [_stage(1.0)]}),
            "cascade: 1 positions for 2 members",
        ),
        (
            _replace("conformal", by={"alpha": 0.1, "threshold": 2, "n_images": 100}),
            "a threshold must be a probability, got 2",
        ),
        (
            _replace("conformal", by={"alpha": 0.1, "threshold": 0.5, "n_images": 8}),
            "alpha 0.1 needs at least 9 images, got 8",
        ),
        (
            _replace("rejection", by={**REJECTION, "coverage": 0}),
            "needs a coverage above 0",
        ),
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


def test_a_member_may_have_any_name_of_its_kind(text: str) -> None:
    values = json.loads(text)
    names = ["42@8", "seed-3", "soup-42", "42-fold-2", "student.1", "a" * 40]

    for name in names:
        values["members"][0]["name"] = name
        assert manifest_from_text(json.dumps(values)).members[0].name == name


def test_what_version_1_said_reads_as_version_2_says_it(text: str) -> None:
    values = json.loads(text)
    values["format_version"] = 1
    for trial, member in enumerate(values["members"]):
        del member["name"], member["cost"]
        member["trial"] = 40 + trial
    for key in ("decision", "cascade", "prefers_cascade", "conformal", "rejection"):
        del values[key]

    manifest = manifest_from_text(json.dumps(values))

    assert [member.name for member in manifest.members] == ["40", "41"]
    assert manifest.format_version == 1
    assert (manifest.decision.rule, manifest.prefers_cascade) == ("most_probable", False)
    assert manifest.members[0].cost is None


@pytest.mark.parametrize("trial", [-1, True, "7", None, 1.0, 10**50])
def test_a_trial_of_version_1_must_be_a_number_of_one(text: str, trial: object) -> None:
    values = json.loads(text)
    values["format_version"] = 1
    del values["members"][0]["name"]
    values["members"][0]["trial"] = trial

    with pytest.raises(BundleError, match=r"members.0.(name|trial): "):
        manifest_from_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rejection": REJECTION, "decision": PRIORS}, "rejection: .* by the decision prior_corr"),
        ({"space": "vote", "rejection": REJECTION}, "shares of votes are no probabilities"),
        ({"space": "vote", "decision": PRIORS}, "shares of votes are no probabilities"),
        (
            {"space": "vote", "conformal": {"alpha": 0.1, "threshold": 0.5, "n_images": 9}},
            "shares of votes are no probabilities",
        ),
    ],
)
def test_promises_that_predictions_cannot_keep_are_refused(
    text: str, changes: dict[str, object], problem: str
) -> None:
    values = json.loads(text)
    values["combination"]["space"] = changes.get("space", "probability")
    values.update({key: value for key, value in changes.items() if key != "space"})

    with pytest.raises(BundleError, match=problem):
        manifest_from_text(json.dumps(values))


def test_biases_of_a_stage_must_match_the_classes(text: str) -> None:
    values = json.loads(text)
    stage = _stage(1.0, at=0.9)
    stage["combination"] = {
        "method": "stack",
        "space": "stack",
        "weights": [1.0],
        "class_weights": [[1, 1]],
        "class_biases": [0, 0],
    }
    values["cascade"] = {"order": [0, 1], "stages": [stage, LAST]}

    with pytest.raises(BundleError, match="2 biases for 3 classes"):
        manifest_from_text(json.dumps(values))


def test_text_in_another_encoding_than_utf_8_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"manifest.json is not JSON"):
        manifest_from_text(text.encode("utf-16"))

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ensembles.builder import build
from ensembles.bundle import load_bundle
from ensembles.combination import Combination
from ensembles.distillation import Predicted, report_distillation
from ensembles.errors import BundleError
from ensembles.export import (
    BundleContents,
    summarize_distillation,
    summarize_report,
    write_bundle,
)
from ensembles.inputs import ImageInput
from ensembles.latency import Cost
from ensembles.manifest import CascadeFigures, Provenance, ReportRecord
from ensembles.members import Member
from ensembles.pool import Pool
from ensembles.report import CascadeFigures as MeasuredCascade
from ensembles.report import evaluate_all
from spaces.architecture import Architecture, Stage
from spaces.networks.builders import build_network
from spaces.task import Task

WriteBundle = Callable[..., Path]


@pytest.fixture
def contents() -> BundleContents:
    architecture = Architecture(
        family="plain",
        stem="whitening",
        stem_width=4,
        stages=(Stage(width=4, kernel_size=3, n_convolutions=1),),
        pooling="max",
        norm="batch",
        activation="relu",
        head="max",
        dropout=0.0,
        initialization="he",
        logit_scale=1.0,
    )
    network = build_network(architecture, Task(image_size=8, channels=1, n_classes=2))
    return BundleContents(
        members=[Member(name="42", architecture=architecture, weights=network.state_dict())],
        combination=Combination(method="single", space="logarithm", weights=(0.8,)),
        classes=("no", "yes"),
        image_input=ImageInput(size=8, channels=1, mean=(0.5,), std=(0.25,)),
        provenance=Provenance(study="tiny", dataset="drawn", dataset_fingerprint="0"),
    )


def test_a_bundle_is_four_names_and_nothing_else(tmp_path: Path, contents: BundleContents) -> None:
    manifest = write_bundle(tmp_path / "deep" / "model", contents)

    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {
        "deep/model/manifest.json",
        "deep/model/members/00000.safetensors",
        "deep/model/README.md",
        "deep/model/self_test.safetensors",
    }
    assert load_bundle(tmp_path / "deep" / "model").manifest == manifest


def test_parameters_are_counted_without_running_statistics(
    tmp_path: Path, contents: BundleContents
) -> None:
    manifest = write_bundle(tmp_path / "model", contents)

    # Whitening 8 x 1 x 2 x 2 + 8, convolution 4 x 8 x 3 x 3, norm 4 + 4, linear 2 x 4.
    assert manifest.members[0].n_parameters == 40 + 288 + 8 + 8


def test_half_precision_weights_are_written_as_float32(
    tmp_path: Path, contents: BundleContents
) -> None:
    member = contents.members[0]
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in member.weights.items()
    }

    write_bundle(tmp_path / "model", replace(contents, members=[replace(member, weights=halves)]))

    network = load_bundle(tmp_path / "model").predictor.networks[0]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_members_without_weight_stay_at_home(write_tiny_bundle: WriteBundle) -> None:
    bundle = load_bundle(write_tiny_bundle(weights=(0.25, 0.0, 0.75)))

    assert [member.name for member in bundle.manifest.members] == ["0", "2"]
    assert bundle.manifest.combination.weights == (0.25, 0.75)


def test_a_full_folder_is_not_touched(tmp_path: Path, contents: BundleContents) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")

    with pytest.raises(BundleError, match=r"model is not empty; choose another folder"):
        write_bundle(tmp_path / "model", contents)
    with pytest.raises(BundleError, match=r"not only a bundle \(thesis.txt\)"):
        write_bundle(tmp_path / "model", contents, overwrite=True)

    assert [path.name for path in tmp_path.rglob("*")] == ["model", "thesis.txt"]


def test_a_bundle_with_a_foreign_file_is_not_overwritten(
    tmp_path: Path, contents: BundleContents
) -> None:
    write_bundle(tmp_path / "model", contents)
    (tmp_path / "model" / "notes.txt").write_text("mine")

    with pytest.raises(BundleError, match=r"not only a bundle \(notes.txt\)"):
        write_bundle(tmp_path / "model", contents, overwrite=True)


def test_a_file_in_the_way_is_an_error(tmp_path: Path, contents: BundleContents) -> None:
    (tmp_path / "model").write_text("mine")

    with pytest.raises(BundleError, match="is a file; a bundle is a folder"):
        write_bundle(tmp_path / "model", contents, overwrite=True)


def test_an_older_bundle_is_replaced_and_leaves_nothing_behind(
    tmp_path: Path, contents: BundleContents, write_tiny_bundle: WriteBundle
) -> None:
    folder = write_tiny_bundle()

    write_bundle(folder, contents, overwrite=True)

    assert load_bundle(folder).classes == ("no", "yes")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_may_be_filled(tmp_path: Path, contents: BundleContents) -> None:
    (tmp_path / "model").mkdir()

    write_bundle(tmp_path / "model", contents)

    assert load_bundle(tmp_path / "model").classes == ("no", "yes")


def test_a_failed_export_keeps_the_older_bundle(
    tmp_path: Path, contents: BundleContents, write_tiny_bundle: WriteBundle
) -> None:
    folder = write_tiny_bundle()
    before = (folder / "manifest.json").read_text()
    broken = replace(contents, classes=("same", "same"))

    with pytest.raises(BundleError, match="classes: the names must differ"):
        write_bundle(folder, broken, overwrite=True)

    assert (folder / "manifest.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, contents: BundleContents) -> None:
    member = contents.members[0]
    weights = {**member.weights, "linear.weight": torch.full((2, 4), torch.nan)}
    broken = replace(contents, members=[replace(member, weights=weights)])

    with pytest.raises(BundleError, match=r"member 42: not all numbers in linear.weight are fin"):
        write_bundle(tmp_path / "model", broken)


def test_weights_of_another_network_are_refused(tmp_path: Path, contents: BundleContents) -> None:
    broken = replace(contents, classes=("a", "b", "c"))

    with pytest.raises(
        BundleError, match=r"linear.weight must be torch.float32 \(3, 4\), got torch.float32 \(2,"
    ):
        write_bundle(tmp_path / "model", broken)


def test_weights_without_members_are_refused(tmp_path: Path, contents: BundleContents) -> None:
    combination = Combination(method="soft", space="probability", weights=(0.5, 0.5))

    with pytest.raises(BundleError, match="2 weights for 1 members"):
        write_bundle(tmp_path / "model", replace(contents, combination=combination))


@pytest.mark.parametrize(
    ("image_input", "problem"),
    [
        (ImageInput(size=8, channels=1), "1 channels need as many means"),
        (ImageInput(size=8, channels=1, mean=(0.5,), std=(0.0,)), "deviations must be above 0"),
        (ImageInput(size=5000, channels=1, mean=(0.5,), std=(1.0,)), "size may be 4096 pixels"),
    ],
)
def test_an_input_that_no_network_takes_is_refused(
    tmp_path: Path, contents: BundleContents, image_input: ImageInput, problem: str
) -> None:
    with pytest.raises(BundleError, match=problem):
        write_bundle(tmp_path / "model", replace(contents, image_input=image_input))

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(
    tmp_path: Path, contents: BundleContents
) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(tmp_path / "file" / "model", contents)


def test_the_manifest_holds_the_hash_of_each_file(
    tmp_path: Path, contents: BundleContents
) -> None:
    write_bundle(tmp_path / "model", contents)

    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    member = manifest["members"][0]
    size = (tmp_path / "model" / member["file"]).stat().st_size
    assert (len(member["sha256"]), member["n_bytes"]) == (64, size)
    assert manifest["format"] == "concertino-bundle"


def test_stacking_over_all_members_survives_the_export(
    tmp_path: Path, contents: BundleContents
) -> None:
    combination = Combination(
        method="stack",
        space="stack",
        weights=(1.0,),
        class_weights=((0.5, -0.5),),
        class_biases=(0.1, -0.1),
    )

    write_bundle(tmp_path / "model", replace(contents, combination=combination))

    bundle = load_bundle(tmp_path / "model")
    assert bundle.manifest.combination == combination
    probabilities = bundle.predict([np.zeros((8, 8), dtype=np.uint8)])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)


def test_a_report_is_cut_down_to_what_a_reader_of_the_bundle_needs() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    scores = generator.normal(size=(4, 60, 3)) + 2 * np.eye(3)[labels]
    pool = Pool.from_arrays(labels=labels, logits=scores)
    report = evaluate_all(
        {"single": build(pool, method="single"), "soft": build(pool, method="soft")},
        choice="soft",
        fit_pool=pool,
        test_pool=pool,
        n_test_openings=2,
    )

    record = summarize_report(report, exported="soft")

    assert [figures.name for figures in record.figures] == ["soft", "single"]
    assert record.figures[0].accuracy == report.chosen_row.test.accuracy
    assert (record.n_images, record.n_openings, record.verdict) == (60, 2, report.sentence)
    interval = report.comparison.accuracy_interval
    assert record.comparison["accuracy_interval"] == (interval.low, interval.high)
    assert record.cascade is None  # 60 images are too few for one
    with pytest.raises(BundleError, match="no row for stack"):
        summarize_report(report, exported="stack")


def test_a_student_tells_what_it_keeps_of_the_gain_of_its_teacher() -> None:
    labels = np.zeros(1000, dtype=np.int64)
    student, ensemble, single = (
        Predicted(
            name=name,
            log_probabilities=np.log(
                np.where(np.arange(1000)[:, None] < n, [0.9, 0.1], [0.1, 0.9])
            ),
            n_members=n_members,
            cost=1.0,
        )
        for name, n, n_members in (("student", 850, 1), ("llp", 900, 5), ("single", 800, 1))
    )
    report = report_distillation(student, ensemble, single, labels, n_test_openings=3)

    record = summarize_distillation(report)

    assert [(each.name, each.n_members) for each in record.figures] == [
        ("student", 1),
        ("llp", 5),
        ("single", 1),
    ]
    assert (record.n_images, record.n_openings) == (1000, 3)
    assert record.verdict == f"{report.verdict} {report.retained}"
    assert record.comparison["only_ensemble_right"] == 50
    assert record.comparison["retained_accuracy"] == pytest.approx(0.5)
    assert report.retained_accuracy is not None
    assert record.comparison["retained_log_loss_interval"] == pytest.approx(
        (report.retained_accuracy.interval.low, report.retained_accuracy.interval.high)
    )


def test_what_the_cascade_did_is_told_of_the_choice_alone() -> None:
    labels = np.arange(30) % 3
    scores = np.random.default_rng(0).normal(size=(3, 30, 3)) + 2 * np.eye(3)[labels]
    pool = Pool.from_arrays(labels=labels, logits=scores)
    report = replace(
        evaluate_all(
            {"single": build(pool, method="single"), "soft": build(pool, method="soft")},
            choice="soft",
            fit_pool=pool,
            test_pool=pool,
        ),
        cascade=MeasuredCascade(
            accuracy=0.9, accuracy_lost=0.001, cost_share=0.4, mean_members=1.5
        ),
    )

    assert summarize_report(report, exported="soft").cascade == CascadeFigures(
        accuracy_lost=0.001, cost_share=0.4, mean_members=1.5
    )
    assert summarize_report(report, exported="single").cascade is None


def test_a_cost_tells_of_the_file_that_was_written(
    tmp_path: Path, contents: BundleContents
) -> None:
    measured = Cost(milliseconds_1=1.5, milliseconds_32=20.0, n_parameters=1, n_bytes=1)
    member = replace(contents.members[0], cost=measured)

    write_bundle(tmp_path / "model", replace(contents, members=[member]))

    (record,) = load_bundle(tmp_path / "model").manifest.members
    assert record.cost == replace(
        measured, n_parameters=record.n_parameters, n_bytes=record.n_bytes
    )


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "a" * 41])
def test_a_member_with_a_name_of_another_kind_is_refused(
    tmp_path: Path, contents: BundleContents, name: str
) -> None:
    member = replace(contents.members[0], name=name)

    with pytest.raises(BundleError, match=r"no bundle can be written: name: String should match"):
        write_bundle(tmp_path / "model", replace(contents, members=[member]))

    assert list(tmp_path.iterdir()) == []


def test_two_members_of_one_name_are_refused(tmp_path: Path, contents: BundleContents) -> None:
    twice = replace(
        contents,
        members=[contents.members[0]] * 2,
        combination=Combination(method="soft", space="probability", weights=(0.5, 0.5)),
    )

    with pytest.raises(BundleError, match="members: the names must differ"):
        write_bundle(tmp_path / "model", twice)


def test_a_report_survives_the_export(tmp_path: Path, contents: BundleContents) -> None:
    report = ReportRecord(
        role="test",
        n_images=10,
        figures=(),
        verdict="Better.",
        comparison={"p_value": 0.5, "verdict": "better", "interval": (0.0, 1.0), "n": 3},
    )

    write_bundle(tmp_path / "model", replace(contents, report=report))

    assert load_bundle(tmp_path / "model").manifest.report == report

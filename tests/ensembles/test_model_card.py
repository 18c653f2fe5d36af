from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensembles.bundle import load_bundle
from ensembles.cascade import Cascade, Stage
from ensembles.combination import Combination
from ensembles.conformal import Conformal, Rejection
from ensembles.decision import Decision
from ensembles.inputs import ImageInput
from ensembles.latency import Cost
from ensembles.manifest import CascadeFigures, Distillation, Manifest
from ensembles.model_card import render_model_card

yaml: Any = pytest.importorskip("yaml")
WriteBundle = Callable[..., Path]


@pytest.fixture
def manifest(write_tiny_bundle: WriteBundle) -> Manifest:
    return load_bundle(write_tiny_bundle()).manifest


def head_of(card: str) -> dict[str, object]:
    head = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(head, dict)
    return head


def test_the_card_is_written_into_the_bundle(write_tiny_bundle: WriteBundle) -> None:
    folder = write_tiny_bundle()

    assert (folder / "README.md").read_text() == render_model_card(load_bundle(folder).manifest)


def test_the_head_is_the_one_that_the_hub_reads(manifest: Manifest) -> None:
    head = head_of(render_model_card(manifest))

    assert head["pipeline_tag"] == "image-classification"
    assert head["model-index"] == [
        {
            "name": "tiny",
            "results": [
                {
                    "task": {"type": "image-classification"},
                    "dataset": {"type": "drawn", "name": "drawn", "split": "test"},
                    "metrics": [
                        {"type": "accuracy", "value": 0.875},
                        {"type": "log_loss", "value": 0.5},
                        {"type": "expected_calibration_error", "value": 0.02},
                    ],
                }
            ],
        }
    ]


def test_results_members_verdict_and_classes_are_told(manifest: Manifest) -> None:
    card = render_model_card(manifest)

    assert "| greedy | 2 | 87.50% | 80.00% to 93.00% | 0.5000 | 2.00% |" in card
    assert "Not distinguishable from the single model." in card
    assert "| 1 | residual | 1 |" in card
    assert "3 classes: cat, dog, owl." in card
    assert "(70 train images)" in card


def test_a_bundle_without_a_report_says_so(manifest: Manifest) -> None:
    card = render_model_card(manifest.model_copy(update={"report": None}))

    assert "nothing is known of its quality" in card
    assert "model-index" not in card


def test_a_student_says_what_it_was_distilled_from(manifest: Manifest) -> None:
    distillation = Distillation(
        method="llp", members=("7", "12@8"), temperature=3.0, share=0.9, recipe="trial 7"
    )
    provenance = manifest.provenance.model_copy(update={"distilled_from": distillation})

    card = render_model_card(manifest.model_copy(update={"provenance": provenance}))

    assert "## Distilled" not in render_model_card(manifest)
    assert "`llp` of 7, 12@8. Of the loss, 90 % was the distance" in card
    assert (
        "at a temperature of 3; the labels decided the rest. The recipe is that of trial 7."
        in (card)
    )


def test_names_cannot_break_the_page(manifest: Manifest) -> None:
    provenance = manifest.provenance.model_copy(
        update={"study": 'a "b": | <script>\n# c', "dataset": "x: y\n---\nz"}
    )
    classes = ("<img>", "a|b", "[link](x)")

    card = render_model_card(
        manifest.model_copy(update={"provenance": provenance, "classes": classes})
    )

    index = head_of(card)["model-index"]
    assert isinstance(index, list)
    assert index[0]["name"] == 'a "b": | <script>\n# c'
    assert '# a "b": \\| \\<script\\> \\# c' in card
    assert "<img>" not in card.replace("\\<img\\>", "")


def test_many_classes_are_cut_short(manifest: Manifest) -> None:
    classes = tuple(f"class {number}" for number in range(60))

    card = render_model_card(manifest.model_copy(update={"classes": classes}))

    assert "class 49 and 10 more." in card


@pytest.mark.parametrize(
    ("fit", "words"),
    [("crop", "middle square"), ("pad", "padded with black"), ("stretch", "stretched")],
)
def test_the_limits_tell_how_pictures_are_fitted(manifest: Manifest, fit: str, words: str) -> None:
    image_input = ImageInput(
        size=8,
        channels=1,
        fit=fit,  # type: ignore[arg-type]  # a parameter of the test
        mean=(0.5,),
        std=(0.5,),
    )

    card = render_model_card(manifest.model_copy(update={"image_input": image_input}))

    assert words in card
    assert "grey pictures of 8 x 8" in card


def test_shares_of_votes_are_not_sold_as_probabilities(manifest: Manifest) -> None:
    votes = manifest.model_copy(
        update={
            "combination": type(manifest.combination)(
                method="vote", space="vote", weights=(0.5, 0.5)
            )
        }
    )

    assert "shares of votes, not probabilities" in render_model_card(votes)
    assert "shares of votes" not in render_model_card(manifest)


def test_costs_are_told_for_each_member_and_for_all(write_tiny_bundle: WriteBundle) -> None:
    costs = (
        Cost(milliseconds_1=0.251, milliseconds_32=4.0, n_parameters=1, n_bytes=1),
        Cost(milliseconds_1=1.5, milliseconds_32=120.6, n_parameters=1, n_bytes=1),
    )
    manifest = load_bundle(write_tiny_bundle(costs=costs)).manifest
    first, second = manifest.members

    card = render_model_card(manifest)

    assert f"| 0 | 0.251 | 4 | {first.n_parameters} | {first.n_bytes / 1e6:.2f} |" in card
    assert f"| 1 | 1.5 | 121 | {second.n_parameters} | {second.n_bytes / 1e6:.2f} |" in card
    n_parameters = first.n_parameters + second.n_parameters
    megabytes = (first.n_bytes + second.n_bytes) / 1e6
    assert f"| all | 1.75 | 125 | {n_parameters:,} | {megabytes:.2f} |" in card
    assert "on the CPU of the machine that exported the bundle" in card


def test_times_that_nobody_measured_are_not_told(
    manifest: Manifest, write_tiny_bundle: WriteBundle
) -> None:
    cost = Cost(milliseconds_1=0.25, milliseconds_32=4.0, n_parameters=1, n_bytes=1)
    half = load_bundle(write_tiny_bundle("half", costs=(cost, None))).manifest

    assert "| all | - | - |" in render_model_card(manifest)
    assert "The times were not measured." in render_model_card(manifest)
    assert "| 0 | 0.25 | 4 |" in render_model_card(half)
    assert "| all | - | - |" in render_model_card(half)


def test_promises_are_told_in_words_where_there_are_any(manifest: Manifest) -> None:
    first = Combination(method="greedy", space="probability", weights=(1.0,))
    both = Combination(method="greedy", space="probability", weights=(0.75, 0.25))
    assert manifest.report is not None
    figures = CascadeFigures(accuracy_lost=0.0012, cost_share=0.375, mean_members=1.25)
    changes = {
        "conformal": Conformal(alpha=0.05, threshold=0.0312, n_images=1500),
        "rejection": Rejection(threshold=0.81, target_accuracy=0.95, coverage=0.875, n_images=1),
        "cascade": Cascade(
            order=(1, 0),
            stages=(
                Stage(combination=first, threshold=0.9),
                Stage(combination=both, threshold=0.0),
            ),
        ),
        "report": manifest.report.model_copy(update={"cascade": figures}),
    }

    plain = render_model_card(manifest)
    card = render_model_card(manifest.model_copy(update=changes))

    for words in (
        "For at least 95% of all pictures",
        "probability is at least 0.0312",
        "fitted on 1,500 images.",
        "largest probability is below 0.81.",
        "at least 95.00% are right",
        "Of the 1 image that it was fitted on, 87.50% are answered",
        "With `predict --cascade`, the members run one after another, in the order 1, 0,",
        "| 1 | 1 | at least 0.9 |",
        "| 2 | 0 | any |",
        "took 1.25 members on average and 37.5% of the cost, and accuracy was 0.12 points lower",
    ):
        assert words in card
    for heading in ("## Sets of classes", "## Pictures without an answer", "## Cascade"):
        assert heading in card
        assert heading not in plain


def test_the_rule_of_the_labels_is_told(manifest: Manifest) -> None:
    decision = Decision(rule="prior_corrected", priors=(0.5, 0.125, 0.375))

    card = render_model_card(manifest.model_copy(update={"decision": decision}))

    assert "The label of a picture is its most probable class." in render_model_card(manifest)
    assert "(12.50% for the rarest class, 50.00% for the most frequent)" in card

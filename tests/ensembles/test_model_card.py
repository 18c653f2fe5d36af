from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensembles.bundle import load_bundle
from ensembles.inputs import ImageInput
from ensembles.manifest import Manifest
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

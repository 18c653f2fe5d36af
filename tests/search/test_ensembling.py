import json
import shutil
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
from runs import Finished

from ensembles.errors import EnsembleError
from search.candidates import find_candidates
from search.cli import main
from search.costs import read_costs
from search.data.roles import read_roles
from search.data.store import open_store
from search.ensembling import (
    OPENINGS,
    Extras,
    build_ensemble,
    check_ensemble,
    read_ensemble,
)
from search.errors import SearchError, StorageError
from search.paths import StudyPaths
from search.storage import open_study
from search.study import Study, load_study


@pytest.fixture
def study(finished: Finished, tmp_path: Path) -> Study:
    """Return a copy of the finished study, which a test may change."""
    shutil.copytree(finished.study.paths.folder, tmp_path / "whole")
    return load_study("whole", studies=tmp_path)


def labels_of(study: Study, role: str) -> np.ndarray:
    rows = read_roles(study.paths.roles).test if role == "test" else None
    assert rows is not None
    return np.asarray(open_store(study.record.store).labels[rows])


def log_probabilities(study: Study, number: int) -> np.ndarray:
    stored: np.ndarray = np.load(study.paths.trial(number).predictions("test"))
    return stored.astype(np.float64)


@pytest.mark.slow
def test_the_table_and_verdict_are_those_of_the_stored_predictions(finished: Finished) -> None:
    study = finished.study
    result = read_ensemble(study.paths)
    report = result.report
    labels = labels_of(study, "test")

    soft = result.selections["soft"]
    weights = np.asarray(soft.combination.weights)
    mixed = sum(
        weight * np.exp(log_probabilities(study, number))
        for weight, number in zip(weights, map(int, soft.names), strict=True)
    )
    row = next(row for row in report.rows if row.method == "soft")
    single = log_probabilities(study, int(report.single))
    single_right = single.argmax(axis=1) == labels
    single_row = next(row for row in report.rows if row.method == "single")
    assert row.test.n_images == len(labels) == study.record.role_sizes["test"]
    assert row.test.accuracy == pytest.approx((np.asarray(mixed).argmax(axis=1) == labels).mean())
    assert single_row.test.accuracy == pytest.approx(single_right.mean())
    tempered = single / single_row.temperature
    tempered -= np.log(np.exp(tempered).sum(axis=1, keepdims=True))
    assert single_row.test.log_loss == pytest.approx(
        -tempered[np.arange(len(labels)), labels].mean(), rel=1e-4
    )


@pytest.mark.slow
def test_the_comparison_counts_who_alone_is_right(finished: Finished) -> None:
    study = finished.study
    report = read_ensemble(study.paths).report
    chosen = read_ensemble(study.paths).selections[report.choice]
    labels = labels_of(study, "test")
    members = np.stack([log_probabilities(study, int(name)) for name in chosen.names])

    combined = chosen.combination.combine(members.astype(np.float32))
    right = combined.argmax(axis=1) == labels
    single_right = log_probabilities(study, int(report.single)).argmax(axis=1) == labels
    only_ensemble = int((right & ~single_right).sum())
    only_single = int((~right & single_right).sum())
    n = only_ensemble + only_single
    tail = sum(comb(n, k) for k in range(min(only_ensemble, only_single) + 1)) / 2**n
    comparison = report.comparison

    assert comparison.only_ensemble_right == only_ensemble
    assert comparison.only_single_right == only_single
    assert comparison.p_value == pytest.approx(min(1.0, 2 * tail))
    assert comparison.accuracy_difference == pytest.approx(right.mean() - single_right.mean())
    established = comparison.accuracy_interval.low > 0 and comparison.p_value < 0.05
    assert (comparison.verdict == "better") is established
    assert report.sentence in finished.ran.out


@pytest.mark.slow
def test_building_again_counts_the_look_at_the_test_role(study: Study) -> None:
    first = read_ensemble(study.paths)

    again = build_ensemble(study)

    assert (first.report.n_test_openings, again.report.n_test_openings) == (1, 2)
    assert again.selections == first.selections
    assert read_ensemble(study.paths) == again


@pytest.mark.slow
def test_the_ensemble_needs_no_weights_to_be_read(study: Study) -> None:
    for weights in study.paths.folder.glob("trials/*/weights.safetensors"):
        weights.write_bytes(b"")

    assert build_ensemble(study).report.rows


@pytest.mark.slow
def test_a_method_and_its_size_can_be_asked_for(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = str(study.paths.folder.parent)

    code = main(
        ["ensemble", "--method", "greedy", "--max-members", "2", "--studies", studies, "--json"]
    )

    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["report"]["choice"] == "greedy"
    assert all(len(each["members"]) <= 2 for each in document["selections"].values())
    assert main(["ensemble", "--method", "stack", "--studies", studies]) == 2
    assert capsys.readouterr().err.startswith(
        "error: stacking 10 classes needs at least 500 images to fit on, got 180"
    )


@pytest.mark.slow
def test_a_method_without_enough_images_is_refused(study: Study) -> None:
    with pytest.raises(EnsembleError, match="stacking 10 classes needs at least 500 images"):
        build_ensemble(study, method="stack")


@pytest.mark.slow
def test_lost_predictions_are_named(study: Study) -> None:
    number = study.leaders()[0].number
    study.paths.trial(number).predictions("ens").write_bytes(b"half")

    with pytest.raises(SearchError, match=r"ens\.npy: predictions cannot be read"):
        build_ensemble(study)


def test_a_broken_record_of_the_ensemble_says_how_to_write_it_anew(tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path / "whole")
    paths.folder.mkdir()
    paths.ensemble.write_text('{"report": 3}', encoding="utf-8")

    with pytest.raises(StorageError, match=r"cannot be read .*`python -m search ensemble` writes"):
        read_ensemble(paths)


@pytest.mark.slow
def test_limits_hold_for_what_was_measured(study: Study) -> None:
    free = build_ensemble(study, method="soft", max_members=3)
    costs = read_costs(study, find_candidates(study, free.selections["soft"].names))
    largest = max(cost.n_bytes for cost in costs.values()) / 1e6

    result = build_ensemble(study, method="soft", max_members=3, max_size=1.5 * largest)

    for selection in result.selections.values():
        costs = read_costs(study, find_candidates(study, selection.names))
        total = sum(cost.n_bytes for cost in costs.values()) / 1e6
        assert 0 < total <= 1.5 * largest
    with pytest.raises(EnsembleError, match="no model fits a latency in ms of at most"):
        build_ensemble(study, max_latency=1e-6)


@pytest.mark.slow
def test_a_network_is_measured_once(study: Study) -> None:
    best = find_candidates(study, [str(study.leaders()[0].number)])
    [first] = read_costs(study, best).values()
    [again] = read_costs(study, best).values()
    assert again == first
    study.paths.costs.write_text("{", encoding="utf-8")
    [anew] = read_costs(study, best).values()
    assert anew.n_bytes == first.n_bytes


@pytest.mark.slow
def test_candidates_of_one_trial_cost_the_same(study: Study) -> None:
    [best] = find_candidates(study, [str(study.leaders()[0].number)])

    costs = read_costs(study, [best, replace(best, name=f"{best.name}@1")])

    assert costs[f"{best.name}@1"] == costs[best.name]


@pytest.mark.slow
def test_a_file_of_the_schema_before_is_read(study: Study) -> None:
    newest = read_ensemble(study.paths)
    document = json.loads(study.paths.ensemble.read_text(encoding="utf-8"))
    document["schema"] = 1
    for values in document["selections"].values():
        values["trial_numbers"] = [int(name) for name in values.pop("members")]
    study.paths.ensemble.write_text(json.dumps(document), encoding="utf-8")

    assert read_ensemble(study.paths) == newest


@pytest.mark.slow
def test_a_file_of_a_later_schema_is_refused(study: Study) -> None:
    document = json.loads(study.paths.ensemble.read_text(encoding="utf-8"))
    study.paths.ensemble.write_text(json.dumps({**document, "schema": 3}), encoding="utf-8")

    with pytest.raises(StorageError, match="schema must be 1 or 2, got 3"):
        read_ensemble(study.paths)


def test_what_is_asked_besides_stands_in_the_table_and_in_the_document(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ensemble", "whole", "--studies", str(study.paths.folder.parent)]

    main([*words, "--metrics", "roc_auc, worst_class_recall", "--front"])
    shown = capsys.readouterr().out
    result = read_ensemble(study.paths)

    for heading in ("roc auc", "worst class recall", "at a cost of"):
        assert heading in shown
    assert all(set(row.test.requested) == {"roc_auc", "worst_class_recall"}
               for row in result.report.rows)  # fmt: skip
    assert result.front is not None
    costs = [point.cost for point in result.front.points]
    assert costs == sorted(costs)
    assert result.front.points[0].ensemble.names == (result.front.single,)


def test_a_metric_that_nobody_knows_opens_no_test_role(study: Study) -> None:
    before = read_ensemble(study.paths).report.n_test_openings

    with pytest.raises(EnsembleError, match="no metric 'precise'; known are accuracy, "):
        build_ensemble(study, extras=Extras(metrics=("precise",)))

    assert read_ensemble(study.paths).report.n_test_openings == before


def test_a_study_of_balanced_accuracy_decides_and_is_judged_by_it(study: Study) -> None:
    config = study.record.config.replaced(metric="balanced_accuracy")
    balanced = replace(study, record=study.record.model_copy(update={"config": config}))

    report = build_ensemble(balanced).report

    rows = read_roles(study.paths.roles).ens
    shares = np.bincount(open_store(study.record.store).labels[rows]) / len(rows)
    assert report.decision.rule == "prior_corrected"
    assert report.decision.priors == pytest.approx(tuple(shares))
    assert report.comparison.named is not None
    assert report.comparison.named.ensemble == report.chosen_row.test.balanced_accuracy
    assert "balanced accuracy" in report.sentence


def test_a_method_outside_of_the_table_joins_it_when_it_is_asked_for(study: Study) -> None:
    usual = build_ensemble(study)
    asked = build_ensemble(study, method="greedy_accuracy")

    assert "greedy_accuracy" not in usual.selections
    assert asked.report.choice == "greedy_accuracy"
    assert set(asked.selections) == {*usual.selections, "greedy_accuracy"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--metrics foo --seeds 3", "no metric 'foo'"),
        ("--method vote --front --seeds 3", "votes have no log-loss"),
        ("--method stack --seeds 3", "stacking 10 classes needs at least 500 images"),
        ("--max-size 1e-9 --folds 3", "no model fits a size in MB of at most 1e-09"),
        ("--max-latency 1e-6 --seeds 3", "no model fits a latency in ms"),
        ("--method seeds", "the best recipe was trained once"),
        ("--method seeds --folds 3", "beside folds they prove nothing"),
        ("--method soup --seeds 3", "soup"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_trained_or_opened(
    study: Study, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    before = open_study(study.paths).user_attrs[OPENINGS]

    code = main(["ensemble", "whole", *words.split(), "--studies", str(study.paths.folder.parent)])

    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert said in told.err
    assert open_study(study.paths).user_attrs[OPENINGS] == before
    assert not study.paths.nested("seeds").folder.exists()
    assert not study.paths.nested("folds-3").folder.exists()


def test_stacking_may_wait_for_the_images_of_folds(study: Study) -> None:
    check_ensemble(study.told(folds=3), method="stack")
    with pytest.raises(EnsembleError, match="stacking 10 classes needs at least 500 images"):
        check_ensemble(study, method="stack")


def test_a_vote_with_a_front_opens_no_test_role(study: Study) -> None:
    before = open_study(study.paths).user_attrs[OPENINGS]

    with pytest.raises(EnsembleError, match="votes have no log-loss"):
        build_ensemble(study, method="vote", extras=Extras(front=True))

    assert open_study(study.paths).user_attrs[OPENINGS] == before


def test_the_test_role_counts_as_opened_only_where_its_figures_are_shown(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise EnsembleError("no front.")

    before = open_study(study.paths).user_attrs[OPENINGS]
    monkeypatch.setattr("search.ensembling.find_front", fail)

    with pytest.raises(EnsembleError, match=r"no front\."):
        build_ensemble(study, method="soft", extras=Extras(front=True))

    assert open_study(study.paths).user_attrs[OPENINGS] == before


def test_a_method_that_a_user_named_is_told_as_such(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["ensemble", "whole", "--method", "soft", "--studies", str(study.paths.folder.parent)])

    shown = " ".join(capsys.readouterr().out.split())
    report = read_ensemble(study.paths).report
    assert report.is_asked_for
    assert (
        f"> asked for with --method; the test role has been opened {report.n_test_openings} times "
        "so far, so whoever asked may have known its figures, and the verdict may flatter"
    ) in shown
    assert not build_ensemble(study).report.is_asked_for

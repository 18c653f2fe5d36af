import json
from collections.abc import Callable

import numpy as np
import pytest

from ensembles.builder import Ensemble, build, build_all, explain_refusal
from ensembles.comparison import compare
from ensembles.decision import Decision
from ensembles.errors import EnsembleError
from ensembles.methods import Method
from ensembles.pool import Pool
from ensembles.report import Report, evaluate_all, measure

RandomPool = Callable[..., Pool]


def split(pool: Pool, n_fit: int) -> tuple[Pool, Pool]:
    rows = np.arange(pool.n_images)
    return pool.select_images(rows[:n_fit]), pool.select_images(rows[n_fit:])


@pytest.fixture
def report(random_pool: RandomPool) -> Report:
    fit_pool, test_pool = split(random_pool(n_images=900), 300)
    refusal = explain_refusal(fit_pool, "stack")
    return evaluate_all(
        build_all(fit_pool),
        choice="llp",
        fit_pool=fit_pool,
        test_pool=test_pool,
        refused={"stack": str(refusal)},
        n_test_openings=2,
    )


def test_every_ensemble_has_a_row_and_every_refusal_its_reason(report: Report) -> None:
    methods = [row.method for row in report.rows]

    assert methods[0] == "single"
    assert len(methods) == 10
    assert "needs at least 500 images" in report.refused["stack"]
    assert report.n_test_openings == 2
    assert {row.method for row in report.rows if not row.is_calibrated} == {
        "vote",
        "weighted_vote",
    }


def test_figures_on_test_and_fitting_images_stand_apart(report: Report) -> None:
    assert {row.test.n_images for row in report.rows} == {600}
    assert {row.fitted_on.n_images for row in report.rows} == {300}


def test_the_verdict_compares_the_choice_with_the_single_model(random_pool: RandomPool) -> None:
    fit_pool, test_pool = split(random_pool(n_images=900), 300)
    ensembles = build_all(fit_pool)

    report = evaluate_all(ensembles, choice="soft", fit_pool=fit_pool, test_pool=test_pool)

    assert report.comparison == compare(
        ensembles["soft"].predict(test_pool),
        ensembles["single"].predict(test_pool),
        test_pool.labels,
    )
    assert report.chosen_row.method == "soft"
    assert report.sentence.startswith("The ensemble (soft, 5 members) is")
    assert report.single == ensembles["single"].names[0]


def test_cost_is_counted_in_single_models(random_pool: RandomPool) -> None:
    plain = random_pool(n_models=2)
    pool = Pool.from_arrays(
        log_probabilities=plain.log_probabilities, labels=plain.labels, costs=[2, 6]
    )
    ensembles = build_all(pool)
    best = ensembles["single"].members[0]

    report = evaluate_all(ensembles, choice="soft", fit_pool=pool, test_pool=pool)

    assert report.rows[0].cost == 1
    assert report.chosen_row.cost == pytest.approx(8 / (2, 6)[best])


def test_test_predictions_are_found_by_name_in_any_order(random_pool: RandomPool) -> None:
    fit_pool, test_pool = split(random_pool(n_images=900), 300)
    built = build_all(fit_pool)
    ensembles: dict[Method, Ensemble] = {"single": built["single"], "llp": built["llp"]}
    needed = sorted({name for each in ensembles.values() for name in each.names}, reverse=True)

    whole = evaluate_all(ensembles, choice="llp", fit_pool=fit_pool, test_pool=test_pool)
    part = evaluate_all(
        ensembles, choice="llp", fit_pool=fit_pool, test_pool=test_pool.select_names(needed)
    )

    assert part == whole


def test_the_choice_may_be_the_single_model(random_pool: RandomPool) -> None:
    pool = random_pool()

    report = evaluate_all(build_all(pool), choice="single", fit_pool=pool, test_pool=pool)

    assert "is the choice itself" in report.sentence
    assert report.comparison.p_value == 1


def test_a_report_read_from_json_text_is_the_same(report: Report) -> None:
    assert Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_json_that_is_no_report_is_refused(report: Report) -> None:
    with pytest.raises(EnsembleError, match="no report of ensembles: 1 validation error"):
        Report.from_json(report.to_json() | {"rows": "none"})
    with pytest.raises(EnsembleError, match="no report of ensembles"):
        Report.from_json({"rows": {1, 2}})


def test_a_report_without_the_choice_or_the_single_model_is_refused(
    random_pool: RandomPool,
) -> None:
    pool = random_pool()
    ensembles = build_all(pool)
    without_single: dict[Method, Ensemble] = {"llp": ensembles["llp"]}

    with pytest.raises(EnsembleError, match="needs the ensembles stack"):
        evaluate_all(ensembles, choice="stack", fit_pool=pool, test_pool=pool)
    with pytest.raises(EnsembleError, match="needs the ensembles single"):
        evaluate_all(without_single, choice="llp", fit_pool=pool, test_pool=pool)


def test_pools_of_other_classes_are_refused(random_pool: RandomPool) -> None:
    pool, other = random_pool(), random_pool(n_classes=3)

    with pytest.raises(EnsembleError, match=r"same classes, got 0, 1, 2, 3 and 0, 1, 2\."):
        evaluate_all(build_all(pool), choice="llp", fit_pool=pool, test_pool=other)


def test_figures_of_three_right_of_four() -> None:
    logarithms = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]))

    figures = measure(logarithms, np.array([0, 0, 0, 1]))

    assert figures.accuracy == 0.75
    assert figures.accuracy_interval.low == pytest.approx(0.3006, abs=1e-4)
    assert figures.balanced_accuracy == 0.5
    assert figures.log_loss == pytest.approx(-(3 * np.log(0.9) + np.log(0.1)) / 4)


def test_the_choice_as_a_cascade_is_told_beside_it(random_pool: RandomPool) -> None:
    fit_pool, test_pool = split(random_pool(n_images=1600), 1000)
    ensembles = build_all(fit_pool)
    report = evaluate_all(ensembles, choice="llp", fit_pool=fit_pool, test_pool=test_pool)

    assert report.cascade is not None
    assert report.cascade.accuracy_lost == pytest.approx(
        report.chosen_row.test.accuracy - report.cascade.accuracy
    )
    assert 0 < report.cascade.cost_share <= 1
    assert 1 <= report.cascade.mean_members <= report.chosen_row.n_members
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


@pytest.mark.parametrize("choice", ["single", "vote"])
def test_single_models_and_votes_have_no_cascade(random_pool: RandomPool, choice: Method) -> None:
    pool = random_pool()
    report = evaluate_all(build_all(pool), choice=choice, fit_pool=pool, test_pool=pool)
    assert report.cascade is None


def test_labels_follow_the_decision_and_probabilities_do_not() -> None:
    log_probabilities = np.log([[0.7, 0.3], [0.7, 0.3], [0.9, 0.1], [0.95, 0.05]])
    labels = np.array([1, 1, 0, 0])
    decision = Decision(rule="prior_corrected", priors=(0.8, 0.2))

    plain = measure(log_probabilities, labels)
    decided = measure(log_probabilities, labels, decision, requested=["matthews", "roc_auc"])

    assert (plain.accuracy, plain.balanced_accuracy) == (0.5, 0.5)
    assert (decided.accuracy, decided.balanced_accuracy) == (1.0, 1.0)
    assert decided.log_loss == plain.log_loss
    assert decided.requested == {"matthews": 1.0, "roc_auc": 1.0}


def test_the_choice_is_compared_with_trainings_of_one_recipe_too(
    random_pool: RandomPool,
) -> None:
    fit_pool, test_pool = split(random_pool(n_images=900), 300)
    ensembles = build_all(fit_pool)
    of_one_recipe = build(fit_pool.select([0, 1, 2]), method="seeds", max_members=3)

    report = evaluate_all(
        {**ensembles, "seeds": of_one_recipe},
        choice="llp",
        fit_pool=fit_pool,
        test_pool=test_pool,
    )

    assert sorted(of_one_recipe.names) == ["0", "1", "2"]
    assert set(of_one_recipe.combination.weights) == {1 / 3}
    assert of_one_recipe.combination.space == "logarithm"
    assert report.against_seeds == compare(
        ensembles["llp"].predict(test_pool), of_one_recipe.predict(test_pool), test_pool.labels
    )
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_members_of_folds_are_reported_as_means_and_predict_as_networks(
    random_pool: RandomPool,
) -> None:
    n_networks = 6
    fit_pool, _ = split(random_pool(n_models=3, n_images=900), 600)
    _, test_pool = split(random_pool(n_models=n_networks, n_images=900), 600)
    folds = {str(model): (str(2 * model), str(2 * model + 1)) for model in range(3)}
    ensembles = build_all(fit_pool)

    report = evaluate_all(
        ensembles, choice="llp", fit_pool=fit_pool, test_pool=test_pool, folds=folds
    )

    llp = next(row for row in report.rows if row.method == "llp")
    means = np.stack(
        [test_pool.log_probabilities[2 * m : 2 * m + 2].mean(axis=0) for m in range(3)]
    )
    weights = {member.name: member.weight for member in llp.members}
    scores = sum(weights.get(str(m), 0.0) * means[m].astype(np.float64) for m in range(3))
    scores = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    figures = measure(np.asarray(scores), test_pool.labels)
    assert report.n_folds == 2
    assert llp.test.log_loss == pytest.approx(figures.log_loss, rel=1e-4)
    assert llp.fitted_on == measure(ensembles["llp"].predict(fit_pool), fit_pool.labels)
    assert llp.n_members <= 3
    assert report.explanation is not None
    assert report.explanation.log_loss == pytest.approx(figures.log_loss, rel=1e-4)
    assert report.cascade is None


UNEQUAL = Decision(rule="prior_corrected", priors=(0.7, 0.1, 0.1, 0.1))


@pytest.mark.parametrize("choice", ["vote", "llp"])
def test_each_side_of_a_comparison_is_the_row_of_the_table(
    random_pool: RandomPool, choice: Method
) -> None:
    fit_pool, test_pool = split(random_pool(n_images=900), 300)
    seeds = build(fit_pool.select([0, 1, 2]), method="seeds", max_members=3)

    report = evaluate_all(
        {**build_all(fit_pool), "seeds": seeds},
        choice=choice,
        fit_pool=fit_pool,
        test_pool=test_pool,
        metric="balanced_accuracy",
        decision=UNEQUAL,
    )

    rows: dict[str, float] = {row.method: row.test.balanced_accuracy for row in report.rows}
    assert report.against_seeds is not None
    for comparison, rival in ((report.comparison, "single"), (report.against_seeds, "seeds")):
        assert comparison.named is not None
        assert comparison.named.ensemble == rows[choice]
        assert comparison.named.single == rows[rival]
    assert report.decision == UNEQUAL


def test_the_cascade_is_judged_by_the_labels_that_are_decided(random_pool: RandomPool) -> None:
    fit_pool, test_pool = split(random_pool(n_images=1600), 1000)

    report = evaluate_all(
        build_all(fit_pool),
        choice="llp",
        fit_pool=fit_pool,
        test_pool=test_pool,
        decision=UNEQUAL,
    )

    assert report.cascade is not None
    assert report.cascade.accuracy + report.cascade.accuracy_lost == pytest.approx(
        report.chosen_row.test.accuracy
    )

"""One table for all ensembles of a pool, and one verdict on the one that was chosen.

The choice is an argument: it is made before anybody looks at the test images. Figures on the
images that the ensembles were fitted on stand beside, marked, because they flatter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from jaxtyping import Float, Int
from pydantic import ConfigDict

from ensembles.builder import Ensemble
from ensembles.cascade_fitting import can_cascade, fit_cascade
from ensembles.comparison import Comparison, Interval, compare, find_wilson_interval
from ensembles.decision import MOST_PROBABLE, Decision
from ensembles.diagnostics import Explanation, explain_members
from ensembles.documents import read_document
from ensembles.errors import EnsembleError
from ensembles.methods import Method
from ensembles.metrics import METRICS, MetricName, measure_requested
from ensembles.overtuning import Overtuning
from ensembles.pool import Pool
from ensembles.reliability import Reliability, reliability, without_temperature


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How good predictions are on one set of images."""

    n_images: int
    accuracy: float
    accuracy_interval: Interval
    """Wilson's, 95 %."""
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    brier: float
    expected_calibration_error: float
    requested: dict[str, float | None] = field(default_factory=dict)
    """What else was asked for; None where it is not defined for these images."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of an ensemble."""

    name: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ensemble in the table."""

    method: Method
    members: tuple[Member, ...]
    temperature: float
    cost: float
    """Of one prediction, in best single models."""
    is_calibrated: bool
    """False for votes: their shares are no probabilities, and log-loss and calibration error
    only show it."""
    test: Figures
    fitted_on: Figures
    """On the images that the ensemble was fitted on: flattering, never the result."""

    @property
    def n_members(self) -> int:
        """Number of models that one prediction needs."""
        return len(self.members)


@dataclass(frozen=True, kw_only=True)
class CascadeFigures:
    """What the choice would cost and lose if its members ran until they are sure."""

    accuracy: float
    """On the test images."""
    accuracy_lost: float
    """Of the full ensemble minus its own, as a share; below 0 is a gain."""
    cost_share: float
    """Mean cost of an image, as a share of running all members."""
    mean_members: float
    """Members that an image needs on average."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The table, the choice and the verdict."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    rows: tuple[Row, ...]
    choice: Method
    """Made before the test images were opened, unless `is_asked_for`."""
    single: str
    """The best single model, by log-loss on the fitting images."""
    comparison: Comparison
    """Of the choice with the best single model, on the test images."""
    sentence: str
    """The verdict in words."""
    refused: dict[Method, str] = field(default_factory=dict)
    """Methods that could not be fitted, and why."""
    n_test_openings: int = 1
    """How often the test images of this study were used, this time included."""
    cascade: CascadeFigures | None = None
    """None where the choice is a single model or a vote."""
    explanation: Explanation | None = None
    """Why the members of the choice, measured on the test images."""
    reliability_before: Reliability | None = None
    """Of the choice on the test images, before anything made it more or less sure."""
    reliability: Reliability | None = None
    """Of the choice on the test images; None for votes, like the one before."""
    overtuning: Overtuning | None = None
    """What the search's own score of the best single model promised, and what it was worth."""
    decision: Decision = MOST_PROBABLE
    """How the probabilities become labels, in all rows but those of votes."""
    against_seeds: Comparison | None = None
    """Of the choice with the mean of trainings of one recipe, in the place of the single model."""
    is_asked_for: bool = False
    """Whether a user named the choice, perhaps after a look at the test images."""
    n_folds: int | None = None
    """Where each member, the single model too, is the mean of as many networks that learned
    without a fold; the fit was on the folds that they did not see."""

    @property
    def chosen_row(self) -> Row:
        """The row of the choice."""
        return next(row for row in self.rows if row.method == self.choice)

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> "Report":
        """Read a report from JSON values.

        Raises:
            EnsembleError: A key is missing or unknown, or a value is of the wrong kind.
        """
        return read_document(cls, values, what="report of ensembles")


def evaluate_all(  # noqa: PLR0913 - what a report tells, each by its name
    ensembles: Mapping[Method, Ensemble],
    *,
    choice: Method,
    fit_pool: Pool,
    test_pool: Pool,
    refused: Mapping[Method, str] | None = None,
    n_test_openings: int = 1,
    overtuning: Overtuning | None = None,
    metric: MetricName = "accuracy",
    decision: Decision = MOST_PROBABLE,
    requested: Sequence[str] = (),
    folds: Mapping[str, Sequence[str]] | None = None,
    is_asked_for: bool = False,
) -> Report:
    """Evaluate ensembles on test images and compare the chosen one with the best single model.

    Args:
        ensembles: As `build_all` returns them; "single" and the choice among them.
        choice: The method to export, chosen without the test images.
        fit_pool: The pool that the ensembles were fitted on.
        test_pool: Predictions of all members, found by name, for the test images.
        refused: Methods that could not be fitted, and why.
        n_test_openings: How often the test images of this study were used, this time included.
        overtuning: Of the search's best model, where one chose among these models.
        metric: What decides whether the choice is better; see `compare`.
        decision: How probabilities become labels; `choose_decision` suits it to the metric.
        requested: Names of further metrics for each row; see `find_metric`.
        folds: Where each model of the fitting pool is the mean of networks that learned without
            a fold: their names in the pool of the test images, by fold.
        is_asked_for: Whether a user named the choice.

    Returns:
        The report.

    Raises:
        EnsembleError: The single model or the choice is missing, a member has no predictions, or
            there is no metric of a name.
    """
    missing = [method for method in ("single", choice) if method not in ensembles]
    if missing:
        raise EnsembleError(f"a report needs the ensembles {', '.join(missing)}, got none.")
    if fit_pool.class_names != test_pool.class_names:
        raise EnsembleError(
            "the fitting and the test predictions need the same classes, "
            f"got {', '.join(fit_pool.class_names)} and {', '.join(test_pool.class_names)}."
        )
    single = ensembles["single"]
    single_cost = _add_costs(single, fit_pool)
    predictions = {
        method: deploy(each, folds).predict(test_pool) for method, each in ensembles.items()
    }
    decisions = {
        # Shares of votes are no probabilities that could be divided by those of the classes.
        method: MOST_PROBABLE if each.combination.space == "vote" else decision
        for method, each in ensembles.items()
    }
    rows = tuple(
        Row(
            method=method,
            members=_list_members(ensemble),
            temperature=ensemble.combination.temperature,
            cost=_add_costs(ensemble, fit_pool) / single_cost,
            is_calibrated=ensemble.combination.space != "vote",
            test=measure(
                predictions[method], test_pool.labels, decisions[method], requested=requested
            ),
            fitted_on=measure(ensemble.predict(fit_pool), fit_pool.labels, decisions[method]),
        )
        for method, ensemble in ensembles.items()
    )

    def compare_with(rival: Method) -> Comparison:
        return compare(
            predictions[choice],
            predictions[rival],
            test_pool.labels,
            metric=metric,
            decision=decisions[choice],
            single_decision=decisions[rival],
        )

    comparison = compare_with("single")
    chosen = next(row for row in rows if row.method == choice)
    return Report(
        rows=rows,
        choice=choice,
        single=single.names[0],
        comparison=comparison,
        sentence=comparison.sentence(
            method=choice, n_members=chosen.n_members, cost_ratio=chosen.cost
        ),
        refused=dict(refused or {}),
        n_test_openings=n_test_openings,
        cascade=None if folds else _try_cascade(ensembles[choice], fit_pool, test_pool, decision),
        explanation=explain_members(
            ensembles[choice], fit_pool, fresh=average_folds(ensembles[choice], folds, test_pool)
        ),
        overtuning=overtuning,
        decision=decision,
        against_seeds=(
            compare_with("seeds") if "seeds" in predictions and choice != "seeds" else None
        ),
        is_asked_for=is_asked_for,
        n_folds=len(folds[single.names[0]]) if folds else None,
        **_reliabilities(deploy(ensembles[choice], folds), test_pool),
    )


def average_folds(
    ensemble: Ensemble, folds: Mapping[str, Sequence[str]] | None, test_pool: Pool
) -> Pool:
    """Return what models predict, each as the mean of the networks behind it.

    The mean is the one that the ensemble takes. Votes and stacked logarithms of means are those
    of the networks only nearly: enough to explain a member.
    """
    if not folds:
        return test_pool
    there = set(test_pool.names)
    members = {name: behind for name, behind in folds.items() if there.issuperset(behind)}
    space = ensemble.combination.space
    return test_pool.average(members, geometrically=space in ("logarithm", "stack"))


def deploy(ensemble: Ensemble, folds: Mapping[str, Sequence[str]] | None) -> Ensemble:
    """Return an ensemble as it predicts: of the networks behind its members, where there are."""
    return ensemble.spread(folds) if folds else ensemble


def _reliabilities(ensemble: Ensemble, pool: Pool) -> dict[str, Reliability]:
    """Return confidence beside accuracy, with and without the temperature."""
    if ensemble.combination.space == "vote":
        return {}
    members = pool.select_names(ensemble.names).log_probabilities
    combinations = {
        "reliability_before": without_temperature(ensemble.combination),
        "reliability": ensemble.combination,
    }
    return {
        name: reliability(each.combine(members), pool.labels)
        for name, each in combinations.items()
    }


def _try_cascade(
    ensemble: Ensemble, fit_pool: Pool, test_pool: Pool, decision: Decision
) -> CascadeFigures | None:
    if not can_cascade(ensemble):
        return None
    cascade = fit_cascade(ensemble, fit_pool, decision=decision)
    members = test_pool.select_names(ensemble.names)
    result = cascade.run(members.log_probabilities)
    reached, whole = (
        METRICS["accuracy"].compute(decision.score(each), test_pool.labels)
        for each in (result.log_probabilities, ensemble.predict(test_pool))
    )
    return CascadeFigures(
        accuracy=reached,
        accuracy_lost=whole - reached,
        cost_share=result.cost_share(cascade, members.costs),
        mean_members=float(result.n_members_run.mean()),
    )


def measure(
    log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
    decision: Decision = MOST_PROBABLE,
    *,
    requested: Sequence[str] = (),
) -> Figures:
    """Compute all metrics of `METRICS`, the interval of the accuracy, and what is asked besides.

    Raises:
        EnsembleError: There is no metric of a name that is asked for.
    """
    scores = decision.score(log_probabilities)
    values = {
        name: metric.compute(scores if metric.of_labels else log_probabilities, labels)
        for name, metric in METRICS.items()
    }
    n_images = len(labels)
    n_right = round(values["accuracy"] * n_images)
    return Figures(
        n_images=n_images,
        accuracy=values["accuracy"],
        accuracy_interval=find_wilson_interval(n_right, n_images),
        balanced_accuracy=values["balanced_accuracy"],
        macro_f1=values["macro_f1"],
        log_loss=values["log_loss"],
        brier=values["brier"],
        expected_calibration_error=values["expected_calibration_error"],
        requested=measure_requested(requested, log_probabilities, labels, scores=scores),
    )


def _add_costs(ensemble: Ensemble, pool: Pool) -> float:
    return float(pool.select_names(ensemble.names).costs.sum())


def _list_members(ensemble: Ensemble) -> tuple[Member, ...]:
    weights = ensemble.combination.weights
    return tuple(
        Member(name=name, weight=weight)
        for name, weight in zip(ensemble.names, weights, strict=True)
    )

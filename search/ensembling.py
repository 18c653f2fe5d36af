"""From the stored predictions of a study to its ensemble and the verdict on the sealed test role.

The builder is fitted on the ens role, which no trial saw; where trials were trained on folds, on
all images of train, stop and ens, each predicted by the network that did not learn from it.

Weights are not touched: every trial left its predictions for the ens and the test role when it
ended. Those for the test role are unsealed here and nowhere else, after the choice is made, and
the study counts how often.
"""

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ensembles.budget import Limit
from ensembles.builder import METHODS, Ensemble, build, choose_method, explain_refusal
from ensembles.decision import choose_decision
from ensembles.errors import EnsembleError
from ensembles.latency import Cost
from ensembles.methods import Method
from ensembles.metrics import find_metric
from ensembles.overtuning import Overtuning
from ensembles.pareto import Front, check_front_method, find_front
from ensembles.pool import Pool
from ensembles.report import Report, average_folds, deploy, evaluate_all
from ensembles.soup import is_soup
from search.basis import NO_SEEDS_BESIDE_FOLDS, Basis, find_basis
from search.candidates import Candidate, candidate_pool, find_candidates, list_trainings
from search.costs import read_costs
from search.errors import NothingToDoError, StorageError
from search.judging import measure_flattery
from search.paths import StudyPaths, write_whole
from search.predictions import has_predictions
from search.seeding import derive_seed
from search.selections import SCHEMA, Selection, read_selections
from search.soup_records import explain_missing_soup, read_soups
from search.storage import open_study
from search.study import Study

logger = logging.getLogger(__name__)

OPENINGS = "test_openings"


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is reported besides the table and the verdict."""

    metrics: tuple[str, ...] = ()
    """Names of further metrics; see `ensembles.metrics.find_metric`."""
    front: bool = False
    """Whether to build the ensembles that no cheaper one equals, too."""


@dataclass(frozen=True, kw_only=True)
class EnsembleResult:
    """The ensembles of a study, and what the test role said of them."""

    report: Report
    selections: dict[str, Selection]
    """By method: what would have to be exported."""
    front: Front | None = None
    """What accuracy costs; None if nobody asked."""

    @property
    def n_folds(self) -> int | None:
        """Of the networks behind each member; None where a member is one network."""
        return self.report.n_folds

    @property
    def worth_exporting(self) -> Method:
        """The choice where it is established to be better, else the single model."""
        better = self.report.comparison.verdict == "better"
        return self.report.choice if better else "single"

    def selection(self, method: Method) -> Selection:
        """Return what would have to be exported for a method.

        Raises:
            EnsembleError: It was not built.
        """
        if method not in self.selections:
            raise EnsembleError(
                f"method {method!r} was not built for this study; "
                f"there are {', '.join(self.selections)}."
            )
        return self.selections[method]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values; `read_ensemble` reads them back."""
        return {
            "schema": SCHEMA,
            "verdict": self.report.sentence,
            "worth_exporting": self.worth_exporting,
            "report": self.report.to_json(),
            "front": self.front.to_json() if self.front else None,
            "selections": {
                method: selection.to_json() for method, selection in self.selections.items()
            },
        }


def check_ensemble(
    study: Study,
    *,
    method: Method | Literal["auto"] = "auto",
    max_latency: float | None = None,
    max_size: float | None = None,
    extras: Extras | None = None,
    soup: bool = False,
) -> None:
    """Refuse what `build_ensemble` would refuse, before its seeds, folds or soups are made.

    Args:
        study: A study with finished trials; its settings say which seeds and folds are to come.
        method: As in `build_ensemble`, like the limits and extras.
        max_latency: Milliseconds that all members together may take for one image.
        max_size: Megabytes that the weights of all members may have.
        extras: What is reported besides.
        soup: Whether soups are to come.

    Raises:
        NothingToDoError: No trial has finished with predictions and weights.
        EnsembleError: The method cannot be used, nothing fits the limits, or there is no metric of
            a name.
    """
    _check_extras(extras or Extras(), method)
    basis, config = find_basis(study), study.record.config
    awaits_folds = config.folds is not None and basis.n_folds is None
    n_networks = (config.folds or 1) if awaits_folds else 1
    limits = _limits(
        study,
        [behind * n_networks for behind in basis.networks.values()],
        {"a latency in ms": max_latency, "a size in MB": max_size},
    )
    if limits:
        build(basis.pool, method="single", limits=limits)
    if awaits_folds:
        basis = replace(basis, n_folds=config.folds, no_seeds=NO_SEEDS_BESIDE_FOLDS)
    to_come = {
        "stack": awaits_folds,  # fitted on more images
        "seeds": config.seeds is not None and basis.n_folds is None,
        "soup": soup and basis.n_folds is None,
    }
    refused = _explain_refusals(study, basis, limits)
    if method != "auto" and method in refused and not to_come.get(method):
        raise EnsembleError(refused[method])


def build_ensemble(
    study: Study,
    *,
    method: Method | Literal["auto"] = "auto",
    max_members: int | None = None,
    max_latency: float | None = None,
    max_size: float | None = None,
    extras: Extras | None = None,
) -> EnsembleResult:
    """Build all ensembles on the ens role, choose one, then report on the test role.

    Args:
        study: A study with finished trials; its settings say whether seeds and folds that were
            trained before are used. Seeds are a row of their own, and never chosen by a rule.
        method: What to choose; `auto` follows a rule that looks at the ens role alone.
        max_members: Members at the most; default: as the study was told.
        max_latency: Milliseconds that all members together may take for one image.
        max_size: Megabytes that the weights of all members may have.
        extras: What is reported besides.

    Returns:
        The ensembles and the report; they also replace those that the study had.

    Raises:
        NothingToDoError: No trial has finished with predictions and weights.
        EnsembleError: The method cannot be used with so few images, nothing fits the limits, or
            there is no metric of a name.
    """
    extras = extras or Extras()
    _check_extras(extras, method)
    paths, metric = study.paths, study.record.config.metric
    basis = find_basis(study)
    choice: Method = choose_method(basis.pool) if method == "auto" else method
    maxima = {"a latency in ms": max_latency, "a size in MB": max_size}
    ensembles, refused = _build_every(study, basis, choice, max_members, maxima)
    if choice in refused:
        raise EnsembleError(refused[choice])
    used = {name for ensemble in ensembles.values() for name in ensemble.names}
    report = evaluate_all(
        ensembles,
        choice=choice,
        fit_pool=_fitting_pool(study, basis),
        # The test role is opened for what these ensembles need, and for no other network.
        test_pool=candidate_pool(study, basis.networks_of(used), "test"),
        refused=_without_idle_refusals(study, refused),
        overtuning=_measure_overtuning(study),
        metric=metric,
        decision=choose_decision(metric, np.bincount(basis.pool.labels)),
        requested=extras.metrics,
        folds=basis.folds,
        is_asked_for=method != "auto",
    )
    front = _find_front(study, basis, ensembles[choice], max_members) if extras.front else None
    # Nothing is left that could be refused: what is counted is shown.
    report = replace(report, n_test_openings=count_opening(paths))
    result = EnsembleResult(
        report=report,
        selections={
            name: Selection(names=deployed.names, combination=deployed.combination)
            for name, ensemble in ensembles.items()
            for deployed in [deploy(ensemble, basis.folds)]
        },
        front=front,
    )
    write_whole(paths.ensemble, json.dumps(result.to_json()).encode())
    logger.info("ensemble: %s", report.sentence)
    from search.publication import publish_ensemble  # noqa: PLC0415  # readers need no Plotly

    publish_ensemble(open_study(paths), report, result.worth_exporting, front=result.front)
    return result


def read_ensemble(paths: StudyPaths) -> EnsembleResult:
    """Read the newest ensemble of a study.

    Raises:
        NothingToDoError: None has been built.
        StorageError: The file is not one that `build_ensemble` wrote.
    """
    if not paths.ensemble.is_file():
        raise NothingToDoError(
            f"study {paths.name!r} has no ensemble yet; `python -m search ensemble` builds it."
        )
    try:
        values = json.loads(paths.ensemble.read_text(encoding="utf-8"))
        return EnsembleResult(
            report=Report.from_json(values["report"]),
            selections=read_selections(values),
            front=Front.from_json(values["front"]) if values.get("front") else None,
        )
    except (ValueError, KeyError, TypeError, EnsembleError) as error:
        raise StorageError(
            f"{paths.ensemble}: cannot be read ({error}); `python -m search ensemble` writes it "
            "anew."
        ) from error


def _check_extras(extras: Extras, method: Method | Literal["auto"]) -> None:
    for name in extras.metrics:
        find_metric(name)
    if extras.front:
        check_front_method(method)


def _build_every(
    study: Study,
    basis: Basis,
    choice: Method,
    max_members: int | None,
    maxima: Mapping[str, float | None],
) -> tuple[dict[Method, Ensemble], dict[Method, str]]:
    """Fit the choice and every method that there is enough for; say what the others miss."""
    config = study.record.config
    limits = _limits(study, basis.networks.values(), maxima)
    refused = _explain_refusals(study, basis, limits)
    fit = partial(
        build,
        max_members=max_members or config.max_members,
        limits=limits,
        seed=derive_seed(config.seed, "ensemble"),
    )
    ensembles: dict[Method, Ensemble] = {
        name: fit(basis.pool, method=name)
        for name in dict.fromkeys([*METHODS, choice])
        if name not in refused and name != "seeds"
    }
    if basis.seeds:
        try:
            ensembles["seeds"] = build(
                candidate_pool(study, basis.seeds, "ens"),
                method="seeds",
                max_members=len(basis.seeds),
                limits=_limits(study, [(each,) for each in basis.seeds], maxima),
            )
        except EnsembleError as error:  # some trials are cheaper
            refused["seeds"] = f"seeds: {error}"
    return ensembles, refused


def _explain_refusals(study: Study, basis: Basis, limits: Sequence[Limit]) -> dict[Method, str]:
    """Say why methods cannot be used; of what is not there, how it is made."""
    reasons = {name: explain_refusal(basis.pool, name, limits) for name in METHODS}
    refused = {name: reason for name, reason in reasons.items() if reason}
    if "soup" in refused and not any(map(is_soup, basis.pool.names)):
        trials = _trials_with_snapshots(study)
        soups = [soup for soup in read_soups(study.paths) if soup.trial in trials]
        refused["soup"] = explain_missing_soup(soups, has_snapshots=bool(trials))
        if basis.n_folds is not None:
            refused["soup"] = "soups average the weights of a trial, not those of its folds."
    if basis.no_seeds:
        refused["seeds"] = basis.no_seeds
    return refused


def _without_idle_refusals(study: Study, refused: dict[Method, str]) -> dict[Method, str]:
    """Leave out what nobody looks for: without snapshots, that there is no soup."""
    idle = () if _trials_with_snapshots(study) else ("soup",)
    return {name: reason for name, reason in refused.items() if name not in idle}


def _trials_with_snapshots(study: Study) -> set[int]:
    return {networks[0].trial for networks in list_trainings(study) if len(networks) > 1}


def _fitting_pool(study: Study, basis: Basis) -> Pool:
    """Return the predictions that the ensembles were fitted on, those of the seeds too."""
    others = [each for each in basis.seeds if each.name not in basis.networks]
    if not others:
        return basis.pool
    candidates = [behind[0] for behind in basis.networks.values()]
    return candidate_pool(study, [*candidates, *others], "ens")


def _limits(
    study: Study,
    networks: Collection[tuple[Candidate, ...]],
    maxima: Mapping[str, float | None],
) -> list[Limit]:
    """Return what the members together may cost; nothing is measured where nothing is limited.

    Args:
        study: The study.
        networks: Behind each model that may be a member.
        maxima: Of the latency and of the size.
    """
    if all(maximum is None for maximum in maxima.values()):
        return []
    costs = read_costs(study, [each for behind in networks for each in behind])
    return [
        Limit(
            name=name,
            costs=_sum_costs(networks, costs, _COSTS[name]),
            maximum=maximum,
        )
        for name, maximum in maxima.items()
        if maximum is not None
    ]


def _sum_costs(
    networks: Collection[tuple[Candidate, ...]],
    costs: Mapping[str, Cost],
    measure: Callable[[Cost], float],
) -> tuple[float, ...]:
    """Return what the networks behind each model cost together."""
    return tuple(sum(measure(costs[each.name]) for each in behind) for behind in networks)


def _find_front(study: Study, basis: Basis, choice: Ensemble, max_members: int | None) -> Front:
    """Find out what accuracy costs, in milliseconds for one image on this machine's CPU.

    Seeds have no front of their own: it is that of the method that the rule chooses.
    """
    behind = basis.networks.values()
    networks = [each for several in behind for each in several]
    costs = read_costs(study, networks)
    return find_front(
        basis.pool,
        {
            "milliseconds": _sum_costs(behind, costs, lambda cost: cost.milliseconds_1),
            "bytes": _sum_costs(behind, costs, lambda cost: cost.n_bytes),
        },
        test_pool=average_folds(choice, basis.folds, candidate_pool(study, networks, "test")),
        method="auto" if choice.method == "seeds" else choice.method,
        max_members=max_members or study.record.config.max_members,
        seed=derive_seed(study.record.config.seed, "ensemble"),
    )


_COSTS: Mapping[str, Callable[[Cost], float]] = {
    "a latency in ms": lambda cost: cost.milliseconds_1,
    "a size in MB": lambda cost: cost.n_bytes / 1e6,
}


def _measure_overtuning(study: Study) -> Overtuning | None:
    """Measure how much the stop role flatters the trial that leads on it."""
    leaders = study.leaders()
    if not leaders or not has_predictions(study.paths.trial(leaders[0].number)):
        return None
    leader = find_candidates(study, [str(leaders[0].number)])
    stop, ens = (candidate_pool(study, leader, role) for role in ("stop", "ens"))
    return measure_flattery(
        stop=(stop.log_probabilities[0], stop.labels), ens=(ens.log_probabilities[0], ens.labels)
    )


def count_opening(paths: StudyPaths) -> int:
    """Count, in the study itself, that the test role is looked at."""
    study = open_study(paths)
    count = int(study.user_attrs.get(OPENINGS, 0)) + 1
    study.set_user_attr(OPENINGS, count)
    return count

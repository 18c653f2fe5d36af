"""From the stored predictions of a study to its ensemble and the verdict on the sealed test role.

Weights are not touched: every trial left its predictions for the ens and the test role when it
ended. Those for the test role are unsealed here and nowhere else, after the choice is made, and
the study counts how often.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ensembles.budget import Limit
from ensembles.builder import METHODS, Ensemble, build_all, choose_method, explain_refusal
from ensembles.decision import choose_decision
from ensembles.errors import EnsembleError
from ensembles.methods import Method
from ensembles.metrics import find_metric
from ensembles.overtuning import Overtuning
from ensembles.pareto import Front, find_front
from ensembles.pool import Pool
from ensembles.report import Report, evaluate_all
from ensembles.soup import is_soup
from search.candidates import Candidate, candidate_pool, list_candidates, list_trainings
from search.costs import read_costs
from search.errors import NothingToDoError, StorageError
from search.judging import measure_flattery
from search.paths import StudyPaths, written_whole
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
    def worth_exporting(self) -> Method:
        """The choice where it is established to be better, else the single model."""
        better = self.report.comparison.verdict == "better"
        return self.report.choice if better else "single"

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
        study: A study with finished trials.
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
    for name in extras.metrics:
        find_metric(name)  # before the test role is opened
    paths, record = study.paths, study.record
    candidates = list_candidates(study)
    ens = candidate_pool(study, candidates, "ens")
    seed = derive_seed(record.config.seed, "ensemble")
    choice: Method = choose_method(ens) if method == "auto" else method
    limits = _limits(study, candidates, max_latency=max_latency, max_size=max_size)
    refused = _explain_refusals(study, ens, limits)
    if choice in refused:
        raise EnsembleError(refused[choice])
    ensembles = build_all(
        ens,
        max_members=max_members or record.config.max_members,
        limits=limits,
        seed=seed,
    )
    report = evaluate_all(
        ensembles,
        choice=choice,
        fit_pool=ens,
        test_pool=candidate_pool(study, _members_of(ensembles, candidates), "test"),
        refused=_without_idle_refusals(study, refused),
        n_test_openings=_count_opening(paths),
        overtuning=_measure_overtuning(study, candidates, ens),
        metric=record.config.metric,
        decision=choose_decision(record.config.metric, np.bincount(ens.labels)),
        requested=extras.metrics,
    )
    result = EnsembleResult(
        report=report,
        selections={
            name: Selection(names=ensemble.names, combination=ensemble.combination)
            for name, ensemble in ensembles.items()
        },
        front=_find_front(study, candidates, ens, choice, max_members) if extras.front else None,
    )
    with written_whole(paths.ensemble) as temporary:
        temporary.write_text(json.dumps(result.to_json()), encoding="utf-8")
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


def _explain_refusals(study: Study, ens: Pool, limits: Sequence[Limit]) -> dict[Method, str]:
    """Say why methods cannot be used; of a soup that is not there, how one is made."""
    reasons = {name: explain_refusal(ens, name, limits) for name in METHODS}
    refused = {name: reason for name, reason in reasons.items() if reason}
    if "soup" in refused and not any(map(is_soup, ens.names)):
        trials = _trials_with_snapshots(study)
        soups = [soup for soup in read_soups(study.paths) if soup.trial in trials]
        refused["soup"] = explain_missing_soup(soups, has_snapshots=bool(trials))
    return refused


def _without_idle_refusals(study: Study, refused: dict[Method, str]) -> dict[Method, str]:
    """Leave out what nobody looks for: without snapshots, that there is no soup."""
    idle = () if _trials_with_snapshots(study) else ("soup",)
    return {name: reason for name, reason in refused.items() if name not in idle}


def _trials_with_snapshots(study: Study) -> set[int]:
    return {networks[0].trial for networks in list_trainings(study) if len(networks) > 1}


def _limits(
    study: Study,
    candidates: list[Candidate],
    *,
    max_latency: float | None,
    max_size: float | None,
) -> list[Limit]:
    """Return what the members together may cost; nothing is measured where nothing is limited."""
    if max_latency is None and max_size is None:
        return []
    costs = read_costs(study, candidates).values()
    times = tuple(cost.milliseconds_1 for cost in costs)
    sizes = tuple(cost.n_bytes / 1e6 for cost in costs)
    wanted = {"a latency in ms": (times, max_latency), "a size in MB": (sizes, max_size)}
    return [
        Limit(name=name, costs=each, maximum=maximum)
        for name, (each, maximum) in wanted.items()
        if maximum is not None
    ]


def _find_front(
    study: Study,
    candidates: list[Candidate],
    ens: Pool,
    method: Method,
    max_members: int | None,
) -> Front:
    """Find out what accuracy costs, in milliseconds for one image on this machine's CPU."""
    costs = read_costs(study, candidates).values()
    return find_front(
        ens,
        {
            "milliseconds": [cost.milliseconds_1 for cost in costs],
            "bytes": [float(cost.n_bytes) for cost in costs],
        },
        test_pool=candidate_pool(study, candidates, "test"),
        method=method,
        max_members=max_members or study.record.config.max_members,
        seed=derive_seed(study.record.config.seed, "ensemble"),
    )


def _measure_overtuning(study: Study, candidates: list[Candidate], ens: Pool) -> Overtuning | None:
    """Measure how much the stop role flatters the trial that leads on it."""
    leader = str(study.leaders()[0].number) if study.leaders() else ""
    best = [each for each in candidates if each.name == leader]
    if not best:
        return None
    stop, same = candidate_pool(study, best, "stop"), ens.select_names([leader])
    return measure_flattery(
        stop=(stop.log_probabilities[0], stop.labels), ens=(same.log_probabilities[0], ens.labels)
    )


def _members_of(ensembles: dict[Method, Ensemble], candidates: list[Candidate]) -> list[Candidate]:
    """Return the candidates that any ensemble needs; the test role is opened for no other."""
    names = {name for ensemble in ensembles.values() for name in ensemble.names}
    return [each for each in candidates if each.name in names]


def _count_opening(paths: StudyPaths) -> int:
    """Count, in the study itself, that the test role is looked at."""
    study = open_study(paths)
    count = int(study.user_attrs.get(OPENINGS, 0)) + 1
    study.set_user_attr(OPENINGS, count)
    return count

"""What became of the students of an ensemble: which is the best, and what the test role says.

What was found is kept beside the students, by what it depends on: where nothing new could be
seen, the test role is not opened again.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ensembles.builder import build
from ensembles.combination import Combination
from ensembles.decision import Decision
from ensembles.distillation import DistillationReport, Predicted, report_distillation
from ensembles.methods import Method
from ensembles.metrics import METRICS, MetricName
from ensembles.pool import Pool
from search.assignments import Lesson, order_name
from search.candidates import Candidate, candidate_pool, find_candidates
from search.ensembling import count_opening
from search.extra_trainings import Trained
from search.paths import written_whole
from search.selections import Selection
from search.students import StudentRecipe
from search.study import Study
from search.trials import ranked

logger = logging.getLogger(__name__)

STUDENT = "student-1"


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Who is compared: the students' teacher, and the single model that all must beat."""

    teacher: Selection
    single: Selection
    lesson: Lesson
    decision: Decision
    """How the probabilities of all become labels."""
    metric: MetricName
    """What decides who is better."""

    @property
    def method(self) -> Method:
        """Of the teacher."""
        return self.teacher.combination.method


@dataclass(frozen=True, kw_only=True)
class Student:
    """One training that ended well."""

    recipe: str
    """Where its recipe comes from."""
    trial_number: int
    """In the nested study."""
    log_loss: float
    """On the stop role, like the accuracy."""
    accuracy: float
    milliseconds: float
    """For one image, as a trial of this recipe measured it."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A student, what it learned from, and what the test role says of it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    students: tuple[Student, ...]
    """Best first by the metric of the study on the stop role; the first one is the result."""
    teacher: Method
    members: tuple[str, ...]
    """Of the teacher."""
    lesson: Lesson
    combination: Combination
    """Of the student alone: its temperature, fitted on the ens role."""
    decision: Decision
    """How its probabilities become labels: as those of the ensemble do."""
    report: DistillationReport

    @property
    def student(self) -> Student:
        """The best one."""
        return self.students[0]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self)


_ADAPTER = TypeAdapter(Distilled)


def judge_students(
    study: Study, contest: Contest, trained: Trained, recipes: Mapping[str, StudentRecipe]
) -> Distilled:
    """Choose the best student, and compare it on the test role, unless that was done before.

    Args:
        study: Where teacher and single model come from.
        contest: Who is compared.
        trained: The students; at least one ended well.
        recipes: Of the students, by the names of their orders.

    Raises:
        SearchError: Predictions of a student or of a member are gone.
    """
    key = digest([contest.teacher.to_json(), contest.single.to_json(), sorted(trained.trials)])
    path = trained.study.paths.result(key)
    try:
        return _ADAPTER.validate_json(path.read_bytes(), strict=True)
    except OSError:
        pass
    except ValidationError as error:
        logger.warning("%s: cannot be read, the student is judged anew: %s", path, error)
    found = _judge(study, contest, trained, recipes)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(found.to_json()), encoding="utf-8")
    logger.info("distillation: %s %s", found.report.verdict, found.report.retained)
    return found


def student_candidate(nested: Study, student: Student) -> Candidate:
    """Return a student as a network of the nested study that it was trained in.

    Raises:
        SearchError: Its trial is gone.
    """
    (candidate,) = find_candidates(nested, [str(student.trial_number)])
    return replace(candidate, name=STUDENT, milliseconds=student.milliseconds)


def digest(values: object) -> str:
    """Return a short name for JSON values that no others have."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _judge(
    study: Study, contest: Contest, trained: Trained, recipes: Mapping[str, StudentRecipe]
) -> Distilled:
    students = _rank(trained, recipes)
    candidate = [student_candidate(trained.study, students[0])]
    fitted = build(candidate_pool(trained.study, candidate, "ens"), method="single")
    names = list(dict.fromkeys(contest.teacher.names + contest.single.names))
    members = candidate_pool(study, find_candidates(study, names), "test")
    own = candidate_pool(trained.study, candidate, "test")
    n_test_openings = count_opening(study.paths)
    return Distilled(
        students=students,
        teacher=contest.method,
        members=contest.teacher.names,
        lesson=contest.lesson,
        combination=fitted.combination,
        decision=contest.decision,
        report=report_distillation(
            _predict("student", Selection(names=own.names, combination=fitted.combination), own),
            _predict(contest.method, contest.teacher, members),
            _predict("single", contest.single, members),
            members.labels,
            metric=contest.metric,
            decision=contest.decision,
            n_test_openings=n_test_openings,
        ),
    )


def _rank(trained: Trained, recipes: Mapping[str, StudentRecipe]) -> tuple[Student, ...]:
    """Return the students, best first on the stop role."""
    rises = METRICS[trained.study.record.config.metric].higher_is_better
    return tuple(
        _student_of(trial, recipes[order_name(trial)])
        for trial in ranked(list(trained.trials.values()), rises=rises)
    )


def _student_of(trial: FrozenTrial, recipe: StudentRecipe) -> Student:
    # Two measurements of the same network differ; then so would its cost and the single model's.
    timed = recipe.like if recipe.is_own else trial
    return Student(
        recipe=recipe.title,
        trial_number=trial.number,
        log_loss=trial.user_attrs["log_loss"],
        accuracy=trial.user_attrs["accuracy"],
        milliseconds=timed.user_attrs["milliseconds"],
    )


def _predict(name: str, selection: Selection, pool: Pool) -> Predicted:
    members = pool.select_names(selection.names)
    return Predicted(
        name=name,
        log_probabilities=selection.combination.combine(members.log_probabilities),
        n_members=members.n_models,
        cost=float(members.costs.sum()),
    )

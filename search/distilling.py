"""From the ensemble of a study to one network that has learned from it, and to its bundle.

The teacher is written as a bundle among the files of the nested study, so a later ensemble of the
same study changes nothing for students that are being trained.
"""

from dataclasses import dataclass
from pathlib import Path

from ensembles.bundle import load_bundle
from ensembles.errors import BundleError, EnsembleError
from ensembles.export import (
    BundleContents,
    refuse_to_replace,
    summarize_distillation,
    write_bundle,
)
from ensembles.manifest import Distillation, Manifest
from ensembles.members import Member
from ensembles.methods import Method
from ensembles.teacher import explain_unfitness
from search.assignments import Lesson
from search.candidates import candidate_pool, find_candidates
from search.costs import read_costs
from search.distilled import Contest, Distilled, digest, judge_students, student_candidate
from search.ensembling import EnsembleResult, read_ensemble
from search.errors import SearchError
from search.exporting import Promises, export_study, provenance_of, with_promises
from search.extra_trainings import Effort, train_again
from search.logs import logged_to_file
from search.predictions import read_weights
from search.students import choose_recipes, order_student
from search.study import Study

KIND = "distill"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What student is wanted."""

    method: Method | None = None
    """Of the ensemble that teaches; default: the choice."""
    trial_number: int | None = None
    """Whose recipe the student gets; default: that of the best trial."""
    n_students: int = 1
    """Students of different recipes, of which the best on the stop role is taken."""
    epochs: int | None = None
    """Default: as many as a trial of the study has."""
    temperature: float = 3.0
    share: float = 0.9


def distill(study: Study, wish: Wish, *, effort: Effort) -> Distilled | None:
    """Train students of the ensemble of a study, and hold the best one to it.

    Args:
        study: A study with an ensemble.
        wish: What student is wanted.
        effort: Time for the trainings, and who is told.

    Returns:
        The result; None where it was interrupted, or where the time was up before a student was
        trained. The same wish goes on then.

    Raises:
        NothingToDoError: The study has no ensemble, or no complete trial.
        ConfigError: There is no such trial.
        EnsembleError: The ensemble cannot teach.
        SearchError: The weights of a member are gone, or all students failed.
    """
    contest = _prepare(read_ensemble(study.paths), wish)
    recipes = choose_recipes(study, trial_number=wish.trial_number, n_recipes=wish.n_students)
    with logged_to_file(study.paths.log):
        _write_teacher(study, contest)
        teachers = find_candidates(study, contest.teacher.names)
        orders = {
            order.name: (order, recipe)
            for recipe in recipes
            for order in [
                order_student(study, recipe, contest.lesson, teachers, epochs=wish.epochs)
            ]
        }
        trained = train_again(
            study, [order for order, _ in orders.values()], kind=KIND, effort=effort
        )
        if trained.end.interrupted:
            return None
        if len(trained.failures) == len(orders):
            reason = next(iter(trained.failures.values()))
            raise SearchError(f"no student could be trained: {reason}.")
        if not trained.trials:
            return None
        named = {name: recipe for name, (_, recipe) in orders.items()}
        return judge_students(study, contest, trained, named)


def export_student(
    study: Study, distilled: Distilled, folder: Path, *, overwrite: bool = False
) -> Manifest:
    """Write a student alone as one folder; one that is there already is left as it is.

    Args:
        study: Whose ensemble it learned from.
        distilled: The student, and what is known of it.
        folder: Where to write.
        overwrite: Replace an older bundle.

    Returns:
        What the bundle says of itself.

    Raises:
        SearchError: The weights of the student are gone.
        BundleError: The folder cannot be written.
    """
    nested = Study(paths=study.paths.nested(KIND), record=study.record)
    candidate = student_candidate(nested, distilled.student)
    contents = BundleContents(
        members=[
            Member(
                name=candidate.name,
                architecture=candidate.recipe.architecture,
                weights=read_weights(candidate.files),
                cost=read_costs(nested, [candidate])[candidate.name],
            )
        ],
        combination=distilled.combination,
        classes=study.record.class_names,
        image_input=study.record.image_input,
        provenance=provenance_of(study).model_copy(
            update={
                "distilled_from": Distillation(
                    method=distilled.teacher,
                    members=distilled.members,
                    temperature=distilled.lesson.temperature,
                    share=distilled.lesson.share,
                    recipe=distilled.student.recipe,
                )
            }
        ),
        report=summarize_distillation(distilled.report),
        decision=distilled.decision,
    )
    if (there := read_student(folder)) and _is_same(there, contents):
        return there
    pool = candidate_pool(nested, [candidate], "ens")
    contents = with_promises(contents, study, pool, "single", Promises())
    return write_bundle(folder, contents, overwrite=overwrite)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that no student could be written to, before anything is trained for it.

    Raises:
        BundleError: It holds something else than a student, which may be the one that is wanted.
    """
    if read_student(folder) is None:
        refuse_to_replace(folder, overwrite=overwrite)


def read_student(folder: Path) -> Manifest | None:
    """Return what a bundle says of itself, if the folder holds one of a student."""
    try:
        manifest = load_bundle(folder).manifest
    except BundleError:
        return None
    return manifest if manifest.provenance.distilled_from else None


def _prepare(result: EnsembleResult, wish: Wish) -> Contest:
    """Choose teacher and rival.

    Raises:
        EnsembleError: The teacher was not built, is one network, or votes.
    """
    method = wish.method or result.report.choice
    teacher = result.selection(method)
    if method == "single":
        others = ", ".join(name for name in result.selections if name != "single")
        raise EnsembleError(
            "the single model is no ensemble, so there is nothing to distill; --method names one: "
            f"there are {others}."
        )
    if reason := explain_unfitness(teacher.combination):
        raise EnsembleError(reason)
    lesson = Lesson(
        teacher=f"{method}-{digest(teacher.to_json())}",
        temperature=wish.temperature,
        share=wish.share,
    )
    named = result.report.comparison.named
    return Contest(
        teacher=teacher,
        single=result.selection("single"),
        lesson=lesson,
        decision=result.report.decision,
        metric=named.metric if named else "accuracy",
    )


def _write_teacher(study: Study, contest: Contest) -> None:
    folder = study.paths.nested(KIND).teacher(contest.lesson.teacher)
    if not folder.is_dir():  # a bundle that exists is whole
        export_study(study, folder, method=contest.method)


def _is_same(there: Manifest, contents: BundleContents) -> bool:
    return (there.provenance, there.report) == (contents.provenance, contents.report)

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from optuna.trial import TrialState
from runs import Finished

from ensembles.bundle import load_bundle
from ensembles.errors import BundleError, EnsembleError
from ensembles.manifest import Distillation
from search import devices
from search.assignments import Lesson
from search.cli import main
from search.data.roles import read_roles
from search.data.store import open_store
from search.devices import Slot
from search.distilled import Distilled
from search.distilling import KIND, Wish, check_folder, distill, export_student
from search.ensembling import OPENINGS, read_ensemble
from search.errors import NothingToDoError
from search.exporting import export_study
from search.extra_trainings import Effort, train_again
from search.lessons import open_lesson
from search.loop import run_trials
from search.storage import open_study
from search.students import choose_recipes, order_student
from search.study import Study, load_study
from spaces.recipe import recipe_from_json
from spaces.transforms import normalize

ONE_THREAD = Slot(number=0, device="cpu", n_threads=1)
SOFT = Wish(method="soft")


@pytest.fixture(autouse=True)
def _on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker have one thread: two are very slow where the machine has other work."""
    monkeypatch.setattr(devices, "n_usable_cores", lambda: 1)


@pytest.fixture
def study(finished: Finished, tmp_path: Path) -> Study:
    """Return a copy of the finished study, which a test may change."""
    shutil.copytree(finished.study.paths.folder, tmp_path / "whole")
    return load_study("whole", studies=tmp_path)


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A study of whose ensemble a student was made."""

    study: Study
    found: Distilled
    n_openings_before: int


@pytest.fixture(scope="module")
def taught(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """Return a study with one student, to which a test may only add."""
    folder = tmp_path_factory.mktemp("taught")
    shutil.copytree(finished.study.paths.folder, folder / "whole")
    study = load_study("whole", studies=folder)
    before = n_openings(study)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(devices, "n_usable_cores", lambda: 1)
        found = distill(study, SOFT, effort=Effort())
    assert found is not None
    return Taught(study=study, found=found, n_openings_before=before)


def pixels_of(study: Study, role: str) -> torch.Tensor:
    store = open_store(study.record.store)
    rows = read_roles(study.paths.roles).rows(role)  # type: ignore[arg-type]  # a name of a role
    inner = slice(store.pad, store.pad + study.record.task.image_size)
    return torch.from_numpy(store.images[rows][:, inner, inner])


def labels_of(study: Study, role: str) -> np.ndarray:
    rows = read_roles(study.paths.roles).rows(role)  # type: ignore[arg-type]  # a name of a role
    labels: np.ndarray = np.asarray(open_store(study.record.store).labels[rows])
    return labels


def n_openings(study: Study) -> int:
    return int(open_study(study.paths).user_attrs[OPENINGS])


@pytest.mark.slow
def test_a_student_is_reported_as_its_stored_predictions_say(taught: Taught) -> None:
    study, found, report = taught.study, taught.found, taught.found.report
    result, labels = read_ensemble(study.paths), labels_of(study, "test")

    files = study.paths.nested(KIND).trial(found.student.trial_number)
    stored = np.load(files.predictions("test")).astype(np.float64)
    tempered = stored / found.combination.temperature
    tempered -= np.log(np.exp(tempered).sum(axis=1, keepdims=True))
    rows = {row.method: row for row in result.report.rows}
    milliseconds = {
        str(trial.number): trial.user_attrs.get("milliseconds", 0.0) for trial in study.trials()
    }
    assert report.student.test.accuracy == pytest.approx((stored.argmax(1) == labels).mean())
    assert report.student.test.log_loss == pytest.approx(
        -tempered[np.arange(len(labels)), labels].mean(), rel=1e-4
    )
    assert report.ensemble.test == rows["soft"].test
    assert report.single.test == rows["single"].test
    assert report.ensemble.cost == pytest.approx(rows["soft"].cost)
    assert report.student.cost == pytest.approx(
        milliseconds[str(study.leaders()[0].number)] / milliseconds[result.report.single]
    )
    assert found.members == result.selections["soft"].names
    assert report.n_test_openings == taught.n_openings_before + 1


@pytest.mark.slow
def test_the_same_wish_trains_nothing_again_and_opens_nothing_again(taught: Taught) -> None:
    nested = load_study(KIND, studies=taught.study.paths.folder)
    began = [trial.datetime_start for trial in nested.trials()]
    openings = n_openings(taught.study)

    again = distill(taught.study, SOFT, effort=Effort())

    assert again == taught.found
    assert [trial.datetime_start for trial in nested.trials()] == began
    assert n_openings(taught.study) == openings


@pytest.mark.slow
def test_the_bundle_holds_the_student_alone(taught: Taught, tmp_path: Path) -> None:
    study, found = taught.study, taught.found

    manifest = export_student(study, found, tmp_path / "student")

    bundle = load_bundle(tmp_path / "student")
    files = study.paths.nested(KIND).trial(found.student.trial_number)
    stored = found.combination.combine(np.load(files.predictions("test"))[None])
    predicted = bundle.predictor.predict_log_probabilities(pixels_of(study, "test"))
    np.testing.assert_allclose(predicted, stored, atol=1e-5)
    assert [member.name for member in manifest.members] == ["student-1"]
    assert manifest.provenance.distilled_from == Distillation(
        method="soft",
        members=found.members,
        temperature=3.0,
        share=0.9,
        recipe=f"trial {study.leaders()[0].number}",
    )
    assert manifest.report is not None
    assert [each.name for each in manifest.report.figures] == ["student", "soft", "single"]
    assert manifest.conformal is not None


@pytest.mark.slow
def test_a_bundle_stays_where_it_is_and_another_one_does_not_take_its_place_unasked(
    taught: Taught, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    manifest = export_student(taught.study, taught.found, folder)
    other = replace(taught.found, lesson=replace(taught.found.lesson, share=0.5))

    assert export_student(taught.study, taught.found, folder) == manifest
    with pytest.raises(BundleError, match="is not empty; choose another folder"):
        export_student(taught.study, other, folder)
    assert export_student(taught.study, other, folder, overwrite=True) != manifest


@pytest.mark.slow
def test_a_result_that_cannot_be_read_is_found_anew(study: Study) -> None:
    first = distill(study, SOFT, effort=Effort())
    (path,) = (study.paths.nested(KIND).folder / "results").iterdir()
    path.write_text("{")

    again = distill(study, SOFT, effort=Effort())

    assert first is not None
    assert again is not None
    assert again.report.n_test_openings == first.report.n_test_openings + 1
    assert again.students == first.students


@pytest.mark.slow
def test_the_best_of_several_students_on_the_stop_role_is_taken(study: Study) -> None:
    found = distill(study, Wish(method="soft", n_students=2), effort=Effort())

    assert found is not None
    labels = labels_of(study, "stop")
    losses = []
    for student in found.students:
        files = study.paths.nested(KIND).trial(student.trial_number)
        predicted = np.load(files.predictions("stop"))
        right = (predicted.argmax(axis=1) == labels).mean()
        assert student.accuracy == pytest.approx(right, abs=1e-6)
        losses.append(student.log_loss)
    assert {each.recipe for each in found.students} == {
        f"trial {trial.number}" for trial in study.leaders()[:2]
    }
    assert losses == sorted(losses)


@pytest.mark.slow
def test_what_is_interrupted_goes_on_and_what_has_no_time_is_not_begun(study: Study) -> None:
    stopped = distill(study, SOFT, effort=Effort(stop_requested=lambda: True))
    late = distill(study, SOFT, effort=Effort(ends_at=time.monotonic()))
    before = n_openings(study)
    nested = load_study(KIND, studies=study.paths.folder)

    assert stopped is None
    assert late is None
    assert [trial.state for trial in nested.trials()] == [TrialState.WAITING]

    assert distill(study, SOFT, effort=Effort()) is not None
    assert n_openings(study) == before + 1


def study_batch(study: Study) -> int:
    recipe = recipe_from_json(study.leaders()[0].user_attrs["recipe"])
    return recipe.optimizer.batch_size


@pytest.mark.slow
@pytest.mark.usefixtures("saved_after_every_round")
def test_a_lesson_that_is_broken_off_equals_an_unbroken_one(study: Study) -> None:
    lesson = Lesson(teacher="soft-0", temperature=3.0, share=0.9)
    (recipe,) = choose_recipes(study)
    order = order_student(study, recipe, lesson, [])
    n_images = study.record.role_sizes["train"]
    in_8_steps = 8 * min(1.0, study_batch(study) / n_images)
    order = replace(order, assignment=replace(order.assignment, epochs=in_8_steps))
    stopped = Effort(stop_requested=lambda: True)
    unbroken, broken = (
        train_again(study, [order], kind=kind, effort=stopped).study
        for kind in ("unbroken", "broken")
    )
    for nested in (unbroken, broken):
        export_study(study, nested.paths.teacher("soft-0"), method="soft")
    n_interruptions = 0

    run_trials(unbroken.paths, ONE_THREAD, lambda: False, n_trials=1, deadline=None)
    while broken.counts().finished < 1:
        # Asked before a trial and before each step; each of the two rounds has four.
        stops = iter([False] * 7 + [True] * 100)
        run_trials(broken.paths, ONE_THREAD, stops.__next__, n_trials=1, deadline=None)
        n_interruptions += 1
        assert n_interruptions < 30

    one, other = (nested.trials()[0] for nested in (unbroken, broken))
    assert n_interruptions > 1
    assert one.state == other.state == TrialState.COMPLETE
    assert one.intermediate_values == other.intermediate_values
    np.testing.assert_array_equal(
        *(np.load(nested.paths.trial(0).predictions("test")) for nested in (unbroken, broken))
    )


@pytest.mark.slow
def test_a_teacher_says_what_its_bundle_does(study: Study) -> None:
    nested = study.paths.nested(KIND)
    export_study(study, nested.teacher("weighted-0"), method="weighted")
    images, image_input = pixels_of(study, "stop"), study.record.image_input

    teaching = open_lesson(
        nested, Lesson(teacher="weighted-0", temperature=3.0, share=0.9), torch.device("cpu")
    )

    said = teaching.ask(normalize(images, image_input.mean, image_input.std))
    expected = load_bundle(nested.teacher("weighted-0")).predictor.predict_log_probabilities(
        images
    )
    np.testing.assert_allclose(said, expected, atol=1e-4)


@pytest.mark.slow
def test_what_cannot_teach_is_refused(study: Study) -> None:
    for method, message in (
        ("vote", "vote cannot teach a student: shares of votes"),
        ("single", "the single model is no ensemble, so there is nothing to distill; --method"),
        ("stack", "method 'stack' was not built for this study; there are single, vote"),
    ):
        with pytest.raises(EnsembleError, match=message):
            distill(study, Wish(method=method), effort=Effort())  # type: ignore[arg-type]
    assert not study.paths.nested(KIND).folder.exists()


def test_without_an_ensemble_there_is_nothing_to_distill(unstarted: Study) -> None:
    with pytest.raises(NothingToDoError, match="has no ensemble yet"):
        distill(unstarted, Wish(), effort=Effort())


@pytest.mark.slow
def test_the_command_prints_the_verdict_and_writes_the_student(
    taught: Taught, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies, out = str(taught.study.paths.folder.parent), tmp_path / "student"
    words = ["distill", "whole", "--method", "soft", "--studies", studies]

    assert main([*words, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main([*words, "--out", str(out)]) == 0
    text = capsys.readouterr().out

    report = taught.found.report
    assert document["verdict"] == report.verdict
    assert document["retained"] == report.retained
    assert report.verdict in text
    assert report.retained in text
    assert document["bytes"] == (out / "members" / "00000.safetensors").stat().st_size
    assert "> student" in text
    assert f"{out}: a student of soft with the recipe of trial" in text


@pytest.mark.slow
def test_a_budget_that_is_too_short_is_told(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "whole", "--method", "soft", "--budget", "1s", "--studies", str(tmp_path)]

    code = main([*words, "--out", str(tmp_path / "student")])

    assert code == 3
    assert capsys.readouterr().err.endswith(
        "the budget ended before a student was trained; everything is kept, and the same command "
        "goes on from the last checkpoint\n"
    )
    assert study.paths.nested(KIND).database.is_file()


def test_a_folder_in_use_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")

    with pytest.raises(BundleError, match="is not empty; choose another folder"):
        check_folder(tmp_path, overwrite=False)
    with pytest.raises(BundleError, match="is not overwritten: it is not only a bundle"):
        check_folder(tmp_path, overwrite=True)
    check_folder(tmp_path / "new", overwrite=False)

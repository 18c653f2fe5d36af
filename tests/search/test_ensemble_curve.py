import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from runs import Finished

from ensembles.builder import build
from ensembles.metrics import log_loss
from ensembles.pool import Pool, split_in_folds
from search import ensemble_curve
from search.curve_points import CurvePoint, read_curve
from search.data.roles import read_roles
from search.data.store import open_store
from search.ensemble_curve import EnsembleCurve, cross_fit
from search.judging import score
from search.paths import StudyPaths
from search.storage import open_study
from search.study import Study


@dataclass
class Acted:
    """A study whose trials are only their predictions."""

    study: Study

    def finish(self, number: int, *, strength: float, noise: float = 1.0) -> FrozenTrial:
        """Let a trial end; the stronger, the better it knows all images but those to test on."""
        paths, record = self.study.paths, self.study.record
        roles, labels = read_roles(paths.roles), open_store(record.store).labels
        generator = np.random.default_rng(number)
        paths.trial(number).folder.mkdir(parents=True)
        losses = {}
        for role in ("stop", "ens"):
            true = np.asarray(labels[roles.rows(role)])
            logits = noise * generator.normal(size=(len(true), len(record.class_names)))
            logits[np.arange(len(true)), true] += strength
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            np.save(paths.trial(number).predictions(role), logits.astype(np.float32))
            losses[role] = score(logits, true)["log_loss"]
        return make_trial(number, log_loss=losses["stop"])


def make_trial(
    number: int, *, log_loss: float | None, state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    trial = create_trial(
        state=state,
        value=log_loss,
        user_attrs={
            "recipe": {"architecture": {"family": "plain"}},
            "milliseconds": 1.0,
            **({} if log_loss is None else {"log_loss": log_loss}),
        },
    )
    trial.number = number
    return trial


@pytest.fixture
def acted(tmp_path: Path, unstarted: Study) -> Acted:
    paths = StudyPaths(tmp_path / unstarted.name)
    shutil.copytree(unstarted.paths.folder, paths.folder)
    return Acted(study=Study(paths=paths, record=unstarted.record))


@pytest.fixture
def told() -> list[CurvePoint]:
    return []


MakeCurve = Callable[[], EnsembleCurve]


@pytest.fixture
def make_curve(acted: Acted, told: list[CurvePoint]) -> MakeCurve:
    return lambda: EnsembleCurve(study=acted.study, on_point=told.append)


def update_all(curve: EnsembleCurve, *stages: Sequence[FrozenTrial]) -> None:
    """Show one stage after the other, without the rest between two refits."""
    for trials in stages:
        curve.update(trials, at_the_end=True)


def test_a_point_holds_the_trials_and_both_scores_on_the_ens_role(
    acted: Acted, make_curve: MakeCurve, told: list[CurvePoint]
) -> None:
    trials = [acted.finish(number, strength=2.0 + number % 2) for number in range(4)]

    update_all(make_curve(), trials)

    [point] = told
    assert point.n_finished == 4
    assert point.n_images == acted.study.record.role_sizes["ens"]
    assert point.best_trial in (1, 3)
    assert set(point.members) <= {0, 1, 2, 3}
    assert point.ensemble.log_loss < point.best.log_loss
    assert point.overtuning.stop_log_loss == pytest.approx(
        trials[point.best_trial].user_attrs["log_loss"], abs=1e-5
    )
    assert point.overtuning.n_ens == point.n_images


def test_the_best_trial_is_scored_like_the_ensemble_of_itself(
    acted: Acted, make_curve: MakeCurve, told: list[CurvePoint]
) -> None:
    update_all(make_curve(), [acted.finish(0, strength=3.0)])

    assert told[0].best == told[0].ensemble
    assert (told[0].gain, told[0].members) == (0.0, (0,))


def test_predictions_for_the_test_role_are_not_needed(
    acted: Acted, make_curve: MakeCurve, told: list[CurvePoint]
) -> None:
    trial = acted.finish(0, strength=2.0)
    acted.study.paths.trial(0).predictions("test").write_bytes(b"sealed")

    update_all(make_curve(), [trial])

    assert len(told) == 1


def test_a_new_point_comes_only_with_a_trial_that_ended(
    acted: Acted, make_curve: MakeCurve, told: list[CurvePoint]
) -> None:
    trials = [acted.finish(number, strength=2.0) for number in range(2)]
    running = make_trial(2, log_loss=None, state=TrialState.RUNNING)
    curve = make_curve()

    update_all(curve, trials[:1], trials[:1], [trials[0], running], trials)

    assert [point.n_finished for point in told] == [1, 2]


def test_after_a_refit_comes_a_rest(
    acted: Acted, make_curve: MakeCurve, told: list[CurvePoint]
) -> None:
    trials = [acted.finish(number, strength=2.0) for number in range(3)]
    curve = make_curve()

    for n_finished in (1, 2, 3):
        curve.update(trials[:n_finished])

    # The first look, which loads what all need, has no rest after it.
    assert [point.n_finished for point in told] == [1, 2]


def test_a_resumed_study_goes_on_with_its_curve_and_doubles_no_point(
    acted: Acted, make_curve: MakeCurve, told: list[CurvePoint]
) -> None:
    trials = [acted.finish(number, strength=2.0) for number in range(3)]
    update_all(make_curve(), trials[:1], trials[:2])
    first = list(told)
    told.clear()

    update_all(make_curve(), trials[:2], trials)

    assert told[0] == first[-1]
    assert [point.n_finished for point in told] == [2, 3]
    assert told[1].seconds >= told[0].seconds
    assert read_curve(acted.study.paths) == (*first, told[1])


def test_trials_without_predictions_are_no_candidates(
    acted: Acted, make_curve: MakeCurve, told: list[CurvePoint]
) -> None:
    gone = make_trial(0, log_loss=0.01)
    early = make_trial(1, log_loss=None, state=TrialState.PRUNED)
    curve = make_curve()

    update_all(curve, [gone, early])
    update_all(curve, [gone, early, acted.finish(2, strength=2.0)])

    assert [(point.n_finished, point.members) for point in told] == [(3, (2,))]


def test_only_the_best_on_the_stop_role_are_kept_in_memory(
    acted: Acted, make_curve: MakeCurve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble_curve, "MAX_CANDIDATES", 2)
    trials = [acted.finish(number, strength=1.0 + number) for number in range(4)]
    curve = make_curve()

    update_all(curve, trials[:2], trials)

    assert list(curve._candidates._predicted) == [3, 2]


def test_of_many_images_always_the_same_part_is_used(
    acted: Acted,
    make_curve: MakeCurve,
    told: list[CurvePoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ensemble_curve, "MIN_IMAGES", 30)
    monkeypatch.setattr(ensemble_curve, "MAX_VALUES", 500)
    trials = [acted.finish(number, strength=2.0) for number in range(2)]
    first, second = make_curve(), make_curve()

    update_all(first, trials[:1], trials)
    update_all(second, trials)

    assert {point.n_images for point in told} == {50}
    np.testing.assert_array_equal(first._candidates._rows, second._candidates._rows)


def test_so_few_images_that_nothing_could_be_said_give_no_curve(
    acted: Acted,
    make_curve: MakeCurve,
    told: list[CurvePoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ensemble_curve, "FEWEST_IMAGES", 10_000)

    update_all(make_curve(), [acted.finish(0, strength=2.0)])

    assert told == []


def test_what_goes_wrong_is_logged_once_and_ends_nothing(
    acted: Acted,
    make_curve: MakeCurve,
    told: list[CurvePoint],
    caplog: pytest.LogCaptureFixture,
) -> None:
    trial = acted.finish(0, strength=2.0)
    file = acted.study.paths.trial(0).predictions("ens")
    whole = file.read_bytes()
    file.write_bytes(b"torn")
    curve = make_curve()

    with caplog.at_level(logging.ERROR):
        update_all(curve, [trial], [trial])
    file.write_bytes(whole)
    update_all(curve, [trial])

    assert [record.message for record in caplog.records] == [
        "ensemble: its curve could not be carried on"
    ]
    assert "predictions cannot be read" in caplog.text
    assert len(told) == 1


def test_the_curve_is_drawn_on_the_page_of_the_study(acted: Acted, make_curve: MakeCurve) -> None:
    update_all(make_curve(), [acted.finish(0, strength=2.0)])

    study = open_study(acted.study.paths)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert any("ensemble-curve" in key for key in attributes)


def test_a_whole_run_leaves_a_curve_of_all_its_trials(finished: Finished) -> None:
    newest = read_curve(finished.study.paths)[-1]

    assert newest.n_finished == finished.study.counts().finished == 6
    assert newest.n_images == finished.study.record.role_sizes["ens"]


def make_pool(labels: np.ndarray) -> Pool:
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(12, 400, 4))
    logits[:, np.arange(400), np.arange(400) % 4] += 0.5
    return Pool.from_arrays(logits=logits, labels=labels)


def test_a_fit_does_not_see_the_images_that_it_is_scored_on() -> None:
    labels = np.arange(400) % 4
    folds = split_in_folds(labels, n_folds=2, seed=1)
    changed = np.where(folds == 1, 3 - labels, labels)

    honest = cross_fit(make_pool(labels), method="llp", max_members=3, seed=1)
    half = make_pool(changed).select_images(np.flatnonzero(folds == 0))

    assert build(half, method="llp", max_members=3, seed=1) == honest.fits[0]
    assert honest.fits[0] != honest.fits[1]


def test_an_image_is_scored_by_the_fit_on_the_other_half() -> None:
    pool = make_pool(np.arange(400) % 4)
    folds = split_in_folds(pool.labels, n_folds=2, seed=1)

    fitted = cross_fit(pool, method="soft", max_members=3, seed=1)

    losses = [
        log_loss(fitted.fits[1 - half].predict(part), part.labels)
        for half, part in enumerate(pool.select_images(np.flatnonzero(folds == h)) for h in (0, 1))
    ]
    assert fitted.score.log_loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_models_that_know_nothing_gain_nothing_when_cross_fitted() -> None:
    generator = np.random.default_rng(5)
    pool = Pool.from_arrays(
        logits=generator.normal(size=(40, 300, 2)), labels=generator.integers(2, size=300)
    )

    fair = cross_fit(pool, method="greedy", max_members=5, seed=0).score.log_loss
    flattering = build(pool, method="greedy", max_members=5)
    own = -flattering.predict(pool)[np.arange(300), pool.labels].mean()

    assert own < np.log(2) - 0.01
    assert fair > np.log(2)

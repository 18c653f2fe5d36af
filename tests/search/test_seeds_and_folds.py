"""Seeds and folds of one study, trained once and looked at from all sides."""

import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from runs import TINY, Finished, Ran, Shell, draw_folder, n_reports, read_states, worker_pids

from ensembles.bundle import load_bundle
from ensembles.errors import EnsembleError
from search.assignments import by_order
from search.candidate_names import fold_name
from search.candidates import Candidate, find_candidates
from search.cli import main
from search.data.folds import read_folds
from search.data.roles import read_roles
from search.data.store import open_store
from search.devices import Slot
from search.ensembling import EnsembleResult, build_ensemble, read_ensemble
from search.exporting import export_study
from search.paths import StudyPaths
from search.predictions import gather_predictions, read_weights
from search.retention import kept_trials
from search.storage import open_study
from search.study import Study, load_study
from search.trained_again import list_fold_members, list_seeds, out_of_fold_pool
from search.workplace import open_workplace

N_SEEDS, N_FOLDS = 3, 3
ONE_THREAD = Slot(number=0, device="cpu", n_threads=1)


@dataclass(frozen=True, kw_only=True)
class Again:
    """A study of which both was trained, and what the commands said; no test may change it."""

    shell: Shell
    seeds: Ran
    of_seeds: EnsembleResult
    folds: Ran
    of_folds: EnsembleResult

    @property
    def study(self) -> Study:
        return self.shell.study("whole")


@pytest.fixture(scope="session")
def again(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Again:
    """Return a copy of the finished study after `--seeds 3` and `--folds 3`."""
    shell = Shell(folder=tmp_path_factory.mktemp("again"))
    shutil.copytree(finished.shell.studies / "whole", shell.studies / "whole")
    ran, results = [], []
    for words in (["--seeds", "3"], ["--folds", "3", "--max-members", "2"]):
        ran.append(shell.run("ensemble", "whole", *words))
        results.append(read_ensemble(StudyPaths(shell.studies / "whole")))
    return Again(shell=shell, seeds=ran[0], of_seeds=results[0], folds=ran[1], of_folds=results[1])


@pytest.fixture
def study(again: Again, tmp_path: Path) -> Study:
    """Return a copy of that study, which a test may change."""
    shutil.copytree(again.study.paths.folder, tmp_path / "whole")
    return load_study("whole", studies=tmp_path)


def stored(networks: list[Candidate], role: str) -> np.ndarray:
    return gather_predictions([each.files for each in networks], role).astype(np.float64)


def softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    normalized: np.ndarray = scores / scores.sum(axis=-1, keepdims=True)
    return normalized


def labels_of_test(study: Study) -> np.ndarray:
    return np.asarray(open_store(study.record.store).labels[read_roles(study.paths.roles).test])


def images_of_the_test_role(study: Study) -> np.ndarray:
    return open_store(study.record.store).unpadded(read_roles(study.paths.roles).test)


@pytest.mark.slow
def test_seeds_are_the_geometric_mean_of_trainings_of_the_best_recipe(again: Again) -> None:
    study, best = again.study, again.study.leaders()[0]
    names = (f"{best.number}", f"{best.number}-seed-1", f"{best.number}-seed-2")
    selection = again.of_seeds.selections["seeds"]
    row = next(row for row in again.of_seeds.report.rows if row.method == "seeds")
    labels = labels_of_test(study)

    networks = find_candidates(study, selection.names)
    mixed = softmax(stored(networks, "test").mean(axis=0) / row.temperature)

    assert sorted(selection.names) == sorted(names)
    assert selection.combination.weights == pytest.approx([1 / 3] * 3)
    assert row.test.log_loss == pytest.approx(
        -np.log(mixed[np.arange(len(labels)), labels]).mean(), rel=1e-4
    )
    assert row.cost == pytest.approx(N_SEEDS) or again.of_seeds.report.single != names[0]
    recipes = {json.dumps(each.recipe.to_json(), sort_keys=True) for each in networks}
    assert len(recipes) == 1
    assert len({str(read_weights(each.files)) for each in networks}) == N_SEEDS


@pytest.mark.slow
def test_seeds_change_neither_the_choice_nor_any_other_row(
    again: Again, finished: Finished
) -> None:
    without = read_ensemble(finished.study.paths).report
    beside = again.of_seeds.report

    assert beside.choice == without.choice
    assert [row for row in beside.rows if row.method != "seeds"] == list(without.rows)
    assert beside.against_seeds is not None
    assert without.against_seeds is None
    assert again.seeds.code == 0
    assert "Against 3 trainings of the best recipe, averaged (seeds, " in again.seeds.out
    assert len(again.seeds.err.splitlines()) == N_SEEDS - 1


@pytest.mark.slow
def test_seeds_can_be_chosen_and_exported(study: Study, tmp_path: Path) -> None:
    result = build_ensemble(study, method="seeds")
    export_study(study, tmp_path / "model", method="seeds")

    networks = find_candidates(study, result.selections["seeds"].names)
    combined = result.selections["seeds"].combination.combine(stored(networks, "test"))
    predicted = load_bundle(tmp_path / "model").predict(images_of_the_test_role(study))
    assert result.report.choice == "seeds"
    np.testing.assert_allclose(predicted, np.exp(combined), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_without_seeds_it_is_said_how_they_are_trained(finished: Finished) -> None:
    message = "the best recipe was trained once; `.* ensemble whole --seeds 5.*` trains it again"

    with pytest.raises(EnsembleError, match=message):
        build_ensemble(finished.study, method="seeds")
    assert "left out: seeds, the rival of every ensemble" in finished.ran.out


@pytest.mark.slow
def test_seeds_of_a_trial_that_leads_no_more_are_not_used(study: Study) -> None:
    assert len(list_seeds(study)) == N_SEEDS
    assert [each.name for each in list_seeds(study.told(seeds=2))] == [
        f"{study.leaders()[0].number}",
        f"{study.leaders()[0].number}-seed-1",
    ]
    better = optuna.trial.create_trial(state=TrialState.COMPLETE, value=-1.0)
    open_study(study.paths).add_trial(better)

    assert list_seeds(load_study("whole", studies=study.paths.folder.parent)) == []


@pytest.mark.slow
def test_each_image_is_predicted_by_a_network_that_did_not_learn_from_it(again: Again) -> None:
    study = again.study
    nested = study.nested("folds-3")
    assert nested is not None
    folds, roles = read_folds(nested.paths.folds), read_roles(study.paths.roles)
    unsealed = np.sort(np.concatenate([roles.train, roles.stop, roles.ens]))
    members = list_fold_members(study, N_FOLDS)
    place = open_workplace(nested.paths, nested.record, ONE_THREAD, lambda: False)
    trials = by_order(nested.trials())

    pool = out_of_fold_pool(study, members, N_FOLDS)

    np.testing.assert_array_equal(np.flatnonzero(folds), unsealed)
    np.testing.assert_array_equal(pool.labels, open_store(study.record.store).labels[unsealed])
    for model, networks in enumerate(members.values()):
        for fold, network in enumerate(networks, start=1):
            assignment = trials[network.name].user_attrs["assignment"]
            assert assignment["fold"] == {"number": fold, "of": N_FOLDS}
            rows = np.flatnonzero(folds == fold)
            loaded = place.load_network(network.recipe, read_weights(network.files))
            predicted = place.predict(loaded, torch.from_numpy(rows), dtype=None)
            np.testing.assert_allclose(
                pool.log_probabilities[model, np.searchsorted(unsealed, rows)],
                predicted,
                rtol=1e-4,
                atol=1e-4,
            )


@pytest.mark.slow
def test_the_best_trials_are_trained_on_all_folds_for_as_long_as_they_were(again: Again) -> None:
    study = again.study
    nested = study.nested("folds-3")
    assert nested is not None
    best = kept_trials(study.trials(), keep=20)[:4]  # twice as many as there may be members

    trials = by_order(nested.trials())

    assert sorted(trials) == sorted(
        fold_name(trial.number, fold, N_FOLDS) for trial in best for fold in (1, 2, 3)
    )
    assert len({trial.user_attrs["assignment"]["seed"] for trial in trials.values()}) == 12
    for trial in best:
        again_trial = trials[fold_name(trial.number, 1, N_FOLDS)]
        assert again_trial.params == trial.params
        assert again_trial.user_attrs["best_round"] == study.record.plan.n_rounds
        assert again_trial.user_attrs["epochs"] == pytest.approx(
            study.record.plan.n_epochs, abs=1.0
        )


@pytest.mark.slow
def test_members_of_folds_predict_as_means_of_their_networks(again: Again) -> None:
    study, report = again.study, again.of_folds.report
    labels = labels_of_test(study)
    rows = {str(row.method): row for row in report.rows}

    for method, geometric in (("single", False), ("soft", False), ("logit", True)):
        row, selection = rows[method], again.of_folds.selections[str(method)]
        networks = find_candidates(study, selection.names)
        predicted = stored(networks, "test")
        mean = predicted.mean(axis=0) if geometric else np.log(np.exp(predicted).mean(axis=0))
        mixed = softmax(mean / row.temperature)
        assert len(selection.names) == N_FOLDS * row.n_members
        assert row.test.accuracy == (mixed.argmax(axis=1) == labels).mean()
        assert row.test.log_loss == pytest.approx(
            -np.log(mixed[np.arange(len(labels)), labels]).mean(), rel=1e-4
        )


@pytest.mark.slow
def test_a_report_of_folds_says_what_it_was_fitted_on(again: Again) -> None:
    report, sizes = again.of_folds.report, again.study.record.role_sizes
    n_unsealed = sizes["train"] + sizes["stop"] + sizes["ens"]

    assert report.n_folds == again.of_folds.n_folds == N_FOLDS
    assert {row.fitted_on.n_images for row in report.rows} == {n_unsealed}
    assert {row.test.n_images for row in report.rows} == {sizes["test"]}
    assert report.n_test_openings == 3
    assert report.cascade is None
    assert f"the choice, made on {n_unsealed:,} images of train, stop and ens" in again.folds.out
    assert "left out: seeds learn from the train role alone" in again.folds.out
    assert len(again.folds.err.splitlines()) == 12
    assert report.explanation is not None
    assert all(each.name.isdigit() for each in report.explanation.members)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["single", "llp", "vote"])
def test_a_bundle_of_folds_predicts_what_was_stored(
    method: str, again: Again, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, selection = again.study, again.of_folds.selections[method]
    studies = ["--studies", str(again.shell.studies)]

    code = main(
        ["export", "whole", "--out", str(tmp_path / "model"), "--method", method, *studies]
    )

    combined = selection.combination.combine(
        stored(find_candidates(study, selection.names), "test")
    )
    bundle = load_bundle(tmp_path / "model")
    assert code == 0
    assert f"{method}, trial " in capsys.readouterr().out
    assert [member.name for member in bundle.manifest.members] == list(selection.names)
    np.testing.assert_allclose(
        bundle.predict(images_of_the_test_role(study)), np.exp(combined), rtol=0, atol=1e-5
    )
    if method != "vote":
        assert bundle.manifest.conformal is not None


@pytest.mark.slow
def test_the_same_command_trains_nothing_twice(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (study.paths.nested("folds-3").database).stat().st_size
    studies = ["--studies", str(study.paths.folder.parent)]

    code = main(["ensemble", "whole", "--folds", "3", "--max-members", "2", *studies, "--json"])

    told = capsys.readouterr()
    nested = study.nested("folds-3")
    assert nested is not None
    assert code == 0
    assert told.err == ""
    assert json.loads(told.out)["report"]["n_folds"] == N_FOLDS
    assert len(nested.trials()) == 12
    assert nested.paths.database.stat().st_size == before


@pytest.mark.slow
def test_seeds_beside_folds_are_refused(study: Study) -> None:
    with pytest.raises(EnsembleError, match="seeds learn from the train role alone; beside folds"):
        build_ensemble(study.told(folds=3, max_members=2), method="seeds")
    with pytest.raises(EnsembleError, match="soups average the weights of a trial, not"):
        build_ensemble(study.told(folds=3, max_members=2), method="soup")


@pytest.mark.slow
def test_limits_count_all_networks_of_a_member(study: Study) -> None:
    study = study.told(folds=3, max_members=2)
    free = build_ensemble(study, method="soft")
    sizes = {
        each.name: each.files.weights.stat().st_size / 1e6
        for each in find_candidates(study, free.selections["soft"].names)
    }
    allowed = max(
        sum(sizes[name] for name in sizes if name.split("-")[0] == trial)
        for trial in {name.split("-")[0] for name in sizes}
    )

    limited = build_ensemble(study, method="soft", max_size=1.01 * allowed)

    assert len(free.selections["soft"].names) == 6
    assert all(len(each.names) == N_FOLDS for each in limited.selections.values())


@pytest.mark.slow
def test_a_run_ends_with_folds_after_a_kill_and_an_interruption(shell: Shell) -> None:
    words = (
        *("run", *TINY[2:], "--epochs", "20", "--trials", "2", "--workers", "2"),
        *("--folds", "3", "--max-members", "1"),
    )
    folder = shell.studies / "digits"
    database = folder / "folds-3" / "study.db"

    command = shell.start(*words)
    command.wait_for(lambda: n_reports(database) >= 4, seconds=150)
    os.kill(worker_pids(folder / "log.jsonl")[-1], signal.SIGKILL)
    os.kill(command.process.pid, signal.SIGINT)
    stopped = command.wait()
    states = read_states(database)
    went_on = shell.run(*words)

    nested = shell.study("digits").nested("folds-3")
    assert nested is not None
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1].startswith("interrupted; everything is kept")
    assert "RUNNING" not in states
    assert "WAITING" in states
    assert went_on.code == 0, went_on.err
    assert len(by_order(nested.trials())) == len(nested.trials()) == 6
    assert "every member, the single model too, is the mean of 3 such networks" in went_on.out
    assert "--folds 5" not in went_on.err


@pytest.mark.slow
def test_more_folds_than_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "photos", {"left": 20, "right": 20})
    assert main(["run", "--data", "photos", "--trials", "1", "--workers", "1", *TINY]) == 0
    few = capsys.readouterr().err.splitlines()[1]

    code = main(["ensemble", "photos", "--folds", "99"])

    assert few.startswith("36 images are few;")
    assert few.endswith("python -m search ensemble photos --folds 5")
    assert code == 2
    assert capsys.readouterr().err == (
        "error: 36 images cannot be shared out to 99 folds; use fewer --folds.\n"
    )

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import make_tiny_study
from torch import Tensor

from ensembles.bundle import load_bundle
from ensembles.calibration import log_loss_after_temperature
from ensembles.errors import EnsembleError
from search import devices
from search.candidates import candidate_pool, find_candidates, list_candidates, list_trainings
from search.cli import main
from search.data.roles import read_roles
from search.data.store import open_store
from search.devices import Slot
from search.ensembling import build_ensemble
from search.errors import NothingToDoError
from search.loop import run_trials
from search.paths import StudyPaths, TrialPaths
from search.predictions import gather_predictions, read_weights, write_network
from search.soup_records import read_soups
from search.soups import make_soups
from search.study import Study, load_study
from search.workplace import Workplace, open_workplace
from spaces.recipe import Recipe, recipe_from_json

ONE_THREAD = Slot(number=0, device="cpu", n_threads=1)


@pytest.fixture(autouse=True)
def _on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "n_usable_cores", lambda: 1)


def shifted(weights: dict[str, Tensor], size: float) -> dict[str, Tensor]:
    """Return weights moved by the same noise, more or less of it, there or back."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor + size * tensor.std() * torch.randn(tensor.shape, generator=generator)
        if name.endswith("weight") and tensor.ndim > 1
        else tensor
        for name, tensor in weights.items()
    }


def leave(files: TrialPaths, weights: dict[str, Tensor], recipe: Recipe, place: Workplace) -> None:
    network = place.load_network(recipe, weights)
    write_network(files, network.state_dict(), place.predict_roles(network))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study of two trials.

    Those of the first are what training found, moved there and back by the same noise: their
    average is good. That of the second is far off, so no average with it is.
    """
    studies = tmp_path_factory.mktemp("soups")
    vary = {"width": 8, "depth": 2, "batch_sizes": 64}
    study = make_tiny_study(studies, trials=2, epochs=4, vary=vary, name="made")
    run_trials(study.paths, ONE_THREAD, lambda: False, n_trials=2, deadline=None)
    place = open_workplace(study.paths, study.record, ONE_THREAD, lambda: False)
    for trial in study.trials()[:2]:
        recipe = recipe_from_json(trial.user_attrs["recipe"])
        files = study.paths.trial(trial.number)
        weights = read_weights(files)
        if trial.number == 0:
            leave(files.snapshot("4"), shifted(weights, 0.5), recipe, place)
            leave(files, shifted(weights, -0.5), recipe, place)
        else:
            leave(files.snapshot("raw"), shifted(weights, 5.0), recipe, place)
    return study


@pytest.fixture
def study(prepared: Study, tmp_path: Path) -> Study:
    """Return a copy of the study, which a test may change."""
    shutil.copytree(prepared.paths.folder, tmp_path / "made")
    return load_study("made", studies=tmp_path)


@pytest.mark.slow
def test_networks_of_one_training_are_averaged_where_it_helps(study: Study) -> None:
    averaged, alone = make_soups(study)

    assert averaged.is_average
    assert set(averaged.ingredients) == set(averaged.offered) == {"0", "0@4"}
    assert averaged.log_loss < averaged.best_log_loss
    pool = candidate_pool(study, find_candidates(study, ["soup-0"]), "ens")
    loss = log_loss_after_temperature(pool.log_probabilities[0], pool.labels)
    assert loss == pytest.approx(averaged.log_loss, abs=1e-6)
    assert alone.ingredients == ("1",)
    assert alone.offered == ("1", "1@raw")
    assert alone.log_loss == alone.best_log_loss
    names = [each.name for each in list_candidates(study)]
    assert names == ["0", "0@4", "1", "1@raw", "soup-0"]
    assert [[each.name for each in group] for group in list_trainings(study)] == [
        ["0", "0@4"],
        ["1", "1@raw"],
    ]


@pytest.mark.slow
def test_the_weights_of_a_soup_are_means_and_its_statistics_are_its_own(study: Study) -> None:
    make_soups(study)

    first, second = (read_weights(each.files) for each in list_trainings(study)[0])
    soup = read_weights(study.paths.soup("soup-0"))
    for name, tensor in soup.items():
        mean = (first[name].double() + second[name].double()) / 2
        if "running" in name:
            assert not torch.allclose(tensor.double(), mean, rtol=1e-4)
        elif tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_soup_is_made_once(study: Study) -> None:
    told: list[int] = []
    first = make_soups(study, on_soup=lambda soup: told.append(soup.trial))
    again = make_soups(study, on_soup=lambda soup: told.append(soup.trial))
    assert told == [0, 1]
    assert again == first == read_soups(study.paths)

    study.paths.soup("soup-0").weights.unlink()
    anew = make_soups(study, on_soup=lambda soup: told.append(soup.trial))

    assert told == [0, 1, 0]
    assert anew == first
    assert study.paths.soup("soup-0").weights.is_file()


@pytest.mark.slow
def test_an_exported_soup_gives_the_stored_probabilities(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = str(study.paths.folder.parent)
    built = main(["ensemble", "made", "--soup", "--json", "--studies", studies])
    document = json.loads(capsys.readouterr().out)

    out = str(tmp_path / "model")
    exported = main(["export", "made", "--method", "soup", "--out", out, "--studies", studies])

    assert (built, exported) == (0, 0)
    assert [soup["trial"] for soup in document["soups"]] == [0, 1]
    assert document["selections"]["soup"]["members"] == ["soup-0"]
    assert "soup, soup of trial 0, " in capsys.readouterr().out
    bundle = load_bundle(tmp_path / "model")
    images = open_store(study.record.store).unpadded(read_roles(study.paths.roles).test)
    [stored] = gather_predictions([study.paths.soup("soup-0")], "test")
    np.testing.assert_allclose(
        bundle.predict(images),
        np.exp(bundle.manifest.combination.combine(stored[None])),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.slow
def test_the_table_has_a_row_for_the_soup_and_says_why_there_is_none(study: Study) -> None:
    before = build_ensemble(study).report
    make_soups(study)
    after = build_ensemble(study).report

    assert "soup" not in {row.method for row in before.rows}
    assert before.refused["soup"].startswith("soup: none was made yet; `python -m search ensemble")
    [row] = [row for row in after.rows if row.method == "soup"]
    assert [member.name for member in row.members] == ["soup-0"]
    assert "soup" not in after.refused
    assert (before.n_test_openings, after.n_test_openings) == (1, 2)


@pytest.mark.slow
def test_soups_of_one_network_each_are_no_soup(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(study.paths.trial(0).snapshots)
    studies = str(study.paths.folder.parent)

    code = main(["ensemble", "made", "--soup", "--studies", studies])

    told = capsys.readouterr().out
    assert code == 0
    assert "1 alone: no average with it is better" in told
    assert "left out: soup: in none of 1 trials with snapshots was an average" in told
    assert not study.paths.soup("soup-1").folder.exists()
    with pytest.raises(EnsembleError, match="in none of 1 trials with snapshots was an average"):
        build_ensemble(study, method="soup")


@pytest.mark.slow
def test_without_snapshots_nobody_is_told_of_soups_unless_they_ask(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 1):
        shutil.rmtree(study.paths.trial(number).snapshots)

    code = main(["ensemble", "made", "--soup", "--studies", str(study.paths.folder.parent)])

    assert code == 3
    assert capsys.readouterr().err.endswith("keeps late rounds of each trial.\n")
    assert "soup" not in build_ensemble(study).report.refused
    with pytest.raises(EnsembleError, match="there is nothing to average; `python -m search run"):
        build_ensemble(study, method="soup")
    with pytest.raises(NothingToDoError, match="there is nothing to average"):
        make_soups(study)


def test_records_that_cannot_be_read_count_as_none(tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path)
    assert read_soups(paths) == []
    paths.soups.parent.mkdir()
    for text in ("{", '{"soups": [{"trial": 1}]}', "[]"):
        paths.soups.write_text(text, encoding="utf-8")

        assert read_soups(paths) == []

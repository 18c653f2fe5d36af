import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from optuna.trial import TrialState
from runs import Finished, make_tiny_study

from search.cleaning import Holding, Wish, clean_cache, clean_study
from search.cli import main
from search.errors import SearchError
from search.paths import StudyPaths, cache_folder
from search.soup_records import soup_files
from search.storage import open_study
from search.study import Study

ROLES = ("stop", "ens", "test")
N_TRIALS = 8


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study of eight finished trials, a failed one and a running one, with files.

    Trials are the better the lower their number. The newest ensemble has the first and the last.
    """
    study = make_tiny_study(tmp_path_factory.mktemp("template"), name="held", keep=5)
    optuna_study = open_study(study.paths)
    for number in range(N_TRIALS):
        trial = optuna_study.ask()
        trial.set_user_attr("log_loss", float(number))
        trial.set_user_attr("recipe", {"architecture": {"family": "plain"}})
        optuna_study.tell(trial, float(number))
        _write_files(study.paths, number, "weights.safetensors", *(f"{r}.npy" for r in ROLES))
    _write_files(study.paths, 3, "snapshots/2/weights.safetensors", "snapshots/2/ens.npy")
    _write_files(study.paths, 6, "snapshots/2/weights.safetensors", "snapshots/2/ens.npy")
    for number in (2, 5):
        soup = soup_files(study.paths, number)
        soup.folder.mkdir(parents=True)
        soup.weights.write_bytes(bytes(1000))
    study.paths.nested("seeds").trial(6).folder.mkdir(parents=True)
    study.paths.nested("seeds").trial(6).weights.write_bytes(bytes(1000))
    optuna_study.tell(optuna_study.ask(), state=TrialState.FAIL)
    _write_files(study.paths, N_TRIALS, "checkpoint.pt", "weights.safetensors")
    optuna_study.ask()
    _write_files(study.paths, N_TRIALS + 1, "checkpoint.pt", "weights.safetensors")
    study.paths.ensemble.write_text(
        '{"schema": 2, "selections": {"llp": {"members": ["7", "0"]}}}', encoding="utf-8"
    )
    return study


@pytest.fixture
def study(template: Study, tmp_path: Path) -> Study:
    """Return a copy of that study, which has its decoded images elsewhere."""
    folder = tmp_path / "studies" / "held"
    shutil.copytree(template.paths.folder, folder)
    return Study(paths=StudyPaths(folder), record=template.record)


@pytest.fixture
def fresh(tmp_path: Path) -> Study:
    """Return a study of which no trial has begun, with its decoded images."""
    return make_tiny_study(tmp_path / "studies", name="fresh")


def _write_files(paths: StudyPaths, number: int, *names: str) -> None:
    for name in names:
        file = paths.trial(number).folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(1000))


def in_sum(holdings: list[Holding]) -> dict[str, tuple[int, int, bool]]:
    return {each.kind: (each.n_files, each.n_bytes, each.goes) for each in holdings}


def with_weights(study: Study) -> list[int]:
    files = [study.paths.trial(number).weights for number in range(N_TRIALS + 2)]
    return [number for number, file in enumerate(files) if file.exists()]


def with_predictions(study: Study) -> list[int]:
    return [
        number
        for number in range(N_TRIALS)
        if any(study.paths.trial(number).predictions(role).exists() for role in ROLES)
    ]


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_by_itself_only_what_nobody_needs_goes(study: Study) -> None:
    kept = all_files(study.paths.folder)

    held = in_sum(clean_study(study, Wish()))

    # The five best and the members of the ensemble stay, and so does what runs.
    assert with_weights(study) == [0, 1, 2, 3, 4, 7, 9]
    assert with_predictions(study) == [*range(8)]
    assert held["weights"] == (7, 7000, False)
    assert held["weights of trials that are not kept"] == (3, 3000, True)
    assert held["snapshots"] == (2, 2000, False)
    assert held["snapshots of trials that are not kept"] == (2, 2000, True)
    assert held["averages of weights"] == (1, 1000, False)
    assert held["averages of weights of trials that are not kept"] == (1, 1000, True)
    assert held["ordered trainings"] == (1, 1000, False)
    assert held["checkpoints of trials that have ended"] == (1, 1000, True)
    assert held["checkpoints"] == (1, 1000, False)
    assert study.paths.trial(9).checkpoint.exists()
    gone = {path for path in kept if not path.exists()}
    assert {str(path.relative_to(study.paths.folder)) for path in gone} == {
        "trials/00005/weights.safetensors",
        "trials/00006/weights.safetensors",
        "trials/00006/snapshots/2/weights.safetensors",
        "trials/00006/snapshots/2/ens.npy",
        "trials/00008/weights.safetensors",
        "trials/00008/checkpoint.pt",
        str(soup_files(study.paths, 5).weights.relative_to(study.paths.folder)),
    }


def test_all_files_are_counted_once(study: Study) -> None:
    held = clean_study(study, Wish(dry_run=True))

    # The database changes a little when it is opened.
    files = [path for path in all_files(study.paths.folder) if "study.db" not in path.name]
    counted = [each for each in held if each.kind != "database"]
    assert sum(each.n_files for each in counted) == len(files)
    assert sum(each.n_bytes for each in counted) == sum(path.stat().st_size for path in files)


def test_fewer_may_be_kept_and_their_predictions_with_them(study: Study) -> None:
    held = in_sum(clean_study(study, Wish(keep=1, predictions=True)))

    # Three of the family stay in any case, and the members of the ensemble.
    assert with_weights(study) == [0, 1, 2, 7, 9]
    assert with_predictions(study) == [0, 1, 2, 7]
    assert held["predictions of trials that are not kept"] == (12, 12_000, True)
    assert not study.paths.trial(3).snapshot("2").weights.exists()
    assert study.counts().finished == N_TRIALS


def test_a_dry_run_shows_the_same_and_frees_nothing(study: Study) -> None:
    before = all_files(study.paths.folder / "trials")

    shown = clean_study(study, Wish(keep=1, predictions=True, dry_run=True))

    assert all_files(study.paths.folder / "trials") == before
    done = clean_study(study, Wish(keep=1, predictions=True))
    assert [each for each in done if each.goes] == [each for each in shown if each.goes]
    assert len([each for each in done if each.goes]) == 5


def test_nothing_is_freed_twice(study: Study) -> None:
    clean_study(study, Wish())

    assert not any(each.goes for each in clean_study(study, Wish()))


@pytest.fixture
def dead_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.mark.parametrize(
    ("is_ours", "seconds_old", "goes"),
    [(False, 120, True), (False, 10, False), (True, 999, False)],
)
def test_an_unfinished_file_goes_when_its_process_is_gone(
    *, study: Study, dead_pid: int, is_ours: bool, seconds_old: float, goes: bool
) -> None:
    pid = os.getpid() if is_ours else dead_pid
    _write_files(study.paths, 2, f".weights.safetensors.{pid}-77.tmp")
    file = next(study.paths.trial(2).folder.glob(".*"))
    modified = file.stat().st_mtime - seconds_old
    os.utime(file, (modified, modified))

    held = in_sum(clean_study(study, Wish()))

    assert file.exists() is not goes
    assert held.get("unfinished files") == ((1, 1000, True) if goes else None)


@pytest.fixture
def running(study: Study) -> Iterator[Study]:
    """Return a study that a run works on: the run holds this lock in another process."""
    with FileLock(study.paths.supervisor_lock):
        yield study


@pytest.mark.parametrize("wish", [Wish(keep=1), Wish(predictions=True)])
def test_what_a_run_may_need_does_not_go_while_it_runs(running: Study, wish: Wish) -> None:
    before = all_files(running.paths.folder / "trials")

    with pytest.raises(SearchError, match="a run is working on study 'held', which needs its"):
        clean_study(running, wish)

    assert all_files(running.paths.folder / "trials") == before


def test_what_nobody_needs_goes_while_a_run_works(running: Study) -> None:
    clean_study(running, Wish())

    assert with_weights(running) == [0, 1, 2, 3, 4, 7, 9]


def test_decoded_images_go_if_no_study_has_them(fresh: Study) -> None:
    studies = fresh.paths.folder.parent
    unused = cache_folder(studies) / ("0" * 32)
    unused.mkdir()
    (unused / "images.npy").write_bytes(bytes(500))

    shown = in_sum(clean_cache(studies, Wish(dry_run=True)))
    assert unused.exists()
    done = in_sum(clean_cache(studies, Wish()))

    assert shown == done
    assert done["decoded images of no study"] == (1, 500, True)
    assert not unused.exists()
    assert fresh.record.store.exists()


def test_the_command_shows_what_studies_share(
    fresh: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clean", "--studies", str(fresh.paths.folder.parent)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "shared by all studies"
    assert lines[-2].split()[:4] == ["decoded", "images", "4", "files"]
    assert lines[-1].startswith("0 B were freed; ")


def test_decoded_images_stay_while_somebody_decodes_them(fresh: Study) -> None:
    studies = fresh.paths.folder.parent
    partial = cache_folder(studies) / f"{'0' * 32}.partial"
    partial.mkdir()

    with FileLock(partial.with_suffix(".lock")):
        assert not any(each.goes for each in clean_cache(studies, Wish()))
    assert partial.exists()
    clean_cache(studies, Wish())

    assert not partial.exists()


def test_decoded_images_stay_while_a_study_cannot_be_read_or_is_being_made(fresh: Study) -> None:
    studies = fresh.paths.folder.parent
    unused = cache_folder(studies) / ("0" * 32)
    unused.mkdir()
    broken = studies / "broken" / "study.db"
    broken.parent.mkdir()
    broken.write_bytes(b"This was a database once. " * 100)

    assert not any(each.goes for each in clean_cache(studies, Wish()))
    broken.unlink()
    with FileLock(broken.with_name("supervisor.lock")):
        assert not any(each.goes for each in clean_cache(studies, Wish()))
    assert unused.exists()
    clean_cache(studies, Wish())

    assert not unused.exists()


def test_the_command_shows_all_studies_and_what_went(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = study.paths.folder.parent
    words = ["clean", "--studies", str(studies)]

    assert main([*words, "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main([*words]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert document["schema"] == 1
    assert document["dry_run"] is True
    assert [each["study"] for each in document["studies"]] == ["held"]
    assert document["freed_bytes"] == 7000
    assert document["free_bytes"] > 0
    assert document["shared"] == []
    assert lines[0] == "study held"
    assert (
        "  weights of trials that are not kept                   3 files       3 kB  freed"
        in lines
    )
    assert lines[-1].startswith("7 kB were freed; ")


def test_a_study_that_cannot_be_read_is_named_and_the_others_are_cleaned(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = study.paths.folder.parent
    broken = studies / "broken" / "study.db"
    broken.parent.mkdir()
    broken.write_bytes(b"This was a database once. " * 100)

    code = main(["clean", "--studies", str(studies)])

    told = capsys.readouterr().out
    assert code == 5
    assert "study broken: " in told
    assert "not the database of study 'broken': file is not a database" in told
    assert with_weights(study) == [0, 1, 2, 3, 4, 7, 9]


@pytest.mark.slow
def test_a_cleaned_study_is_still_exported_and_its_ensemble_built_again(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.shell.studies, tmp_path / "studies")
    where = ["--studies", str(tmp_path / "studies")]

    assert main(["clean", "whole", "--keep", "1", "--predictions", *where]) == 0
    assert main(["export", "whole", "--out", str(tmp_path / "model"), *where]) == 0
    assert main(["ensemble", "whole", *where]) == 0

    assert "next:" in capsys.readouterr().out

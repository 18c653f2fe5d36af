import gc
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from runs import TINY, Finished, draw_folder, make_tiny_study
from safetensors.numpy import load_file

from search import devices, running, schedule
from search.cli import main
from search.config import StudyConfig
from search.devices import Slot
from search.errors import SearchError
from search.loop import run_trials
from search.predictions import has_predictions
from search.retention import kept_trials
from search.rungs import Rungs
from search.running import RunResult, run_study
from search.schedule import Deadline
from search.study import Study, load_study
from search.supervisor import SearchEnd

ONE_THREAD = Slot(number=0, device="cpu", n_threads=1)
HALVES = {"left": 30, "right": 30}


@pytest.fixture(autouse=True)
def _on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker have one thread: two are very slow where the machine has other work."""
    monkeypatch.setattr(devices, "n_usable_cores", lambda: 1)


def run_tiny(studies: Path, **settings: object) -> RunResult:
    """Run a study of tiny networks with one worker process."""
    values: dict[str, object] = {
        "epochs": 1,
        "space": "small",
        "vary": {"width": 8, "depth": 2},
        "devices": "cpu",
        "workers": 1,
        "trials": 2,
        **settings,
    }
    return run_study(StudyConfig.model_validate(values), studies=studies)


@pytest.mark.parametrize(("patience", "n_rounds"), [(1, 4), (5, 6), (7, 8), (None, 8)])
def test_a_trial_that_gets_no_better_is_complete_after_half_of_its_rounds(
    tmp_path: Path, patience: int | None, n_rounds: int
) -> None:
    study = make_tiny_study(
        tmp_path,
        epochs=8,
        trials=1,
        patience=patience,
        pruner="none",
        limit_train=60,
        metric="accuracy",
        # Steps too small to change a class, and no statistics: each round is like the first.
        vary={"width": 8, "depth": 2, "learning_rate_factor": 1e-6, "norms": "none",
              "stems": "convolution", "averagings": "none", "optimizers": "sgd"},
    )  # fmt: skip

    run_trials(study.paths, ONE_THREAD, lambda: False, n_trials=1, deadline=None)

    (trial,) = study.trials()[:1]
    assert trial.state == optuna.trial.TrialState.COMPLETE
    assert list(trial.intermediate_values) == list(range(1, n_rounds + 1))
    stopped = {} if n_rounds == 8 else {"ending": f"stopped after round {n_rounds}: no better"}
    assert {key: trial.user_attrs[key] for key in ("ending",) if key in trial.user_attrs} == (
        stopped
    )


def numbers(study: Study) -> list[tuple[object, ...]]:
    """Return what must be the same in two runs of one study, trial by trial."""
    return [
        (
            trial.number,
            trial.state,
            trial.values,
            trial.params,
            trial.intermediate_values,
            trial.user_attrs.get("log_loss"),
            trial.user_attrs.get("recipe"),
        )
        for trial in study.trials()
    ]


def assert_same_predictions(study: Study, other: Study, trial_numbers: Sequence[int]) -> None:
    for number in trial_numbers:
        for role in ("stop", "ens", "test"):
            np.testing.assert_array_equal(
                np.load(study.paths.trial(number).predictions(role)),
                np.load(other.paths.trial(number).predictions(role)),
            )


def snapshot_files(study: Study) -> dict[str, bytes]:
    folder = study.paths.folder
    files = [path for path in folder.glob("trials/*/snapshots/*/*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_run_ends_well_with_exactly_the_trials_asked(finished: Finished) -> None:
    counts = finished.study.counts()

    assert finished.ran.code == 0, finished.ran.err
    assert counts.finished == 6
    assert counts.running == counts.failed == 0
    assert [trial.number for trial in finished.study.trials() if trial.state.is_finished()] == [
        *range(6)
    ]


@pytest.mark.slow
def test_a_run_reports_table_verdict_and_next_commands_on_stdout(finished: Finished) -> None:
    lines = finished.ran.out.splitlines()

    assert lines[0].startswith("study whole: 6 of 6 trials finished (")
    assert lines[1].startswith("best trial: ")
    assert lines[3].split()[:4] == ["on", "the", "test", "role"]
    assert {line[2:].split()[0] for line in lines[4:13]} >= {"single", "vote", "soft", "greedy"}
    assert sum(line.startswith("> ") for line in lines[4:14]) == 1
    assert any("best single trial" in line for line in lines)
    assert lines[-4:] == [
        "next:",
        "  python -m search export whole --out model",
        "  python -m search predict model PICTURES...",
        "  python -m search dashboard whole",
    ]


@pytest.mark.slow
def test_progress_is_one_line_for_each_trial_on_stderr(finished: Finished) -> None:
    *lines, remark = finished.ran.err.splitlines()

    assert remark.startswith("560 images are few;")
    assert len(lines) == 6
    assert [line.split()[0] for line in lines] == [f"[{n}/6]" for n in range(1, 7)]
    assert sorted(int(line.split()[2].rstrip(":")) for line in lines) == [*range(6)]


@pytest.mark.slow
def test_nothing_is_colored_in_a_pipe(finished: Finished) -> None:
    assert "\x1b" not in finished.ran.out + finished.ran.err


@pytest.mark.slow
def test_the_same_command_again_only_reports(
    finished: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.shell.folder)
    monkeypatch.setattr(sys, "argv", ["search/__main__.py"])
    before = numbers(finished.study)

    code = main(["run", "--name", "whole", "--trials", "6", "--workers", "2", *TINY])

    told = capsys.readouterr()
    assert code == 0
    assert told.err.splitlines() == finished.ran.err.splitlines()[-1:]
    assert told.out.splitlines()[1:] == finished.ran.out.splitlines()[1:]
    assert numbers(finished.study) == before


@pytest.mark.slow
def test_every_reading_command_prints_one_document(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = ["--studies", str(finished.shell.studies)]
    documents = []
    for words in (
        ["resume", "whole"],
        ["status", "whole"],
        ["status"],
        ["best", "whole", "--top", "2"],
        ["list"],
    ):
        assert main([*words, *studies, "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))

    resume, status, newest, best, listed = documents
    leaders = finished.study.leaders()
    assert {document["schema"] for document in documents} == {1}
    assert (resume["finished"], resume["best_trial"]) == (6, leaders[0].number)
    assert resume["ensemble"]["verdict"] == status["verdict"]
    assert status == newest
    assert (status["finished"], status["trials"], status["active"]) == (6, 6, False)
    assert [row["number"] for row in best["trials"]] == [trial.number for trial in leaders[:2]]
    assert listed["studies"] == [{"problem": None, **status}]


@pytest.mark.slow
def test_tables_for_people_show_the_same_numbers(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = ["--studies", str(finished.shell.studies)]
    best = finished.study.leaders()[0]
    score = f"{best.user_attrs['log_loss']:.4f}"

    for words in (["status"], ["best", "--params"], ["list"]):
        assert main([*words, *studies]) == 0
        told = capsys.readouterr().out
        assert score in told
        assert "\x1b" not in told
    assert main(["best", "--params", "--top", "1", *studies]) == 0
    assert f"  architecture.norm = {best.params['architecture.norm']}" in capsys.readouterr().out


@pytest.mark.slow
def test_more_trials_are_added_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_tiny(tmp_path, trials=2, limit_train=100)
    before = numbers(first.study)

    code = main(["resume", "digits", "--trials", "+2", "--studies", str(tmp_path), "--json"])

    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (document["finished"], document["trials"]) == (4, 4)
    assert numbers(first.study)[:2] == before[:2]
    assert first.study.counts().finished == 4


@pytest.mark.slow
def test_a_seed_makes_a_study_of_one_worker_repeatable(tmp_path: Path) -> None:
    # Twelve trials, so that the sampler has begun to learn from the first ten.
    settings = {"trials": 12, "limit_train": 64, "epochs": 2, "seed": 5, "workers": 1}
    one = run_tiny(tmp_path / "one", **settings).study
    two = make_tiny_study(tmp_path / "two", **settings)
    run_trials(two.paths, ONE_THREAD, lambda: False, n_trials=12, deadline=None)

    assert numbers(one) == numbers(two)
    assert_same_predictions(one, two, range(12))


@pytest.mark.slow
def test_another_seed_is_another_search(tmp_path: Path) -> None:
    one, two = (
        make_tiny_study(tmp_path / str(seed), seed=seed, trials=1, sampler="random", epochs=1)
        for seed in (1, 2)
    )

    for study in (one, two):
        run_trials(study.paths, ONE_THREAD, lambda: False, n_trials=1, deadline=None)

    assert numbers(one) != numbers(two)


@pytest.mark.slow
@pytest.mark.parametrize(("pruner", "n_trials"), [("median", 2), ("rungs", 3)])
@pytest.mark.usefixtures("saved_after_every_round")
def test_an_interrupted_study_equals_an_unbroken_one(
    pruner: str, n_trials: int, tmp_path: Path
) -> None:
    unbroken, broken = (
        make_tiny_study(tmp_path / name, trials=n_trials, epochs=6, pruner=pruner, snapshots=2)
        for name in ("unbroken", "broken")
    )
    n_interruptions = 0

    run_trials(unbroken.paths, ONE_THREAD, lambda: False, n_trials=n_trials, deadline=None)
    while broken.counts().finished < n_trials:
        n_asked = 0

        def stop_soon() -> bool:
            nonlocal n_asked
            n_asked += 1
            return n_asked > 4

        run_trials(broken.paths, ONE_THREAD, stop_soon, n_trials=n_trials, deadline=None)
        n_interruptions += 1
        assert broken.counts().running == 0
        assert n_interruptions < 30

    assert n_interruptions > 2
    assert numbers(broken) == numbers(unbroken)
    assert_same_predictions(broken, unbroken, range(n_trials))
    assert len(snapshot_files(unbroken)) >= 8
    assert snapshot_files(broken) == snapshot_files(unbroken)
    assert not list(broken.paths.folder.glob("trials/*/checkpoint.pt"))


@pytest.mark.slow
def test_a_pruned_trial_is_a_candidate_and_only_the_best_keep_weights(tmp_path: Path) -> None:
    study = run_tiny(
        tmp_path, trials=16, epochs=4, keep=5, limit_train=100, pruner="percentile", seed=3
    ).study

    trials = study.trials()
    pruned = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED]
    kept = {trial.number for trial in kept_trials(trials, keep=5)}
    on_disk = {
        trial.number for trial in trials if study.paths.trial(trial.number).weights.is_file()
    }
    assert study.counts().finished == 16
    assert pruned
    assert all(trial.user_attrs["ending"].startswith("pruned after round") for trial in pruned)
    assert all(trial.user_attrs["log_loss"] > 0 for trial in pruned)
    assert all(
        study.paths.trial(trial.number).predictions(role).is_file()
        for trial in trials
        if trial.state.is_finished()
        for role in ("stop", "ens", "test")
    )
    assert on_disk == kept
    by_log_loss = sorted(
        (trial for trial in trials if trial.state.is_finished()),
        key=lambda trial: trial.user_attrs["log_loss"],
    )
    assert {trial.number for trial in by_log_loss[:5]} <= kept
    assert len(load_file(study.paths.trial(min(kept)).weights)) > 4


@pytest.mark.slow
def test_half_of_the_trials_end_at_a_rung_with_its_predictions(tmp_path: Path) -> None:
    study = run_tiny(tmp_path, trials=12, epochs=4, limit_train=100, pruner="rungs", seed=3).study

    trials = [trial for trial in study.trials() if trial.state.is_finished()]
    reached = [max(trial.intermediate_values) for trial in trials]
    pruned = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert study.record.plan.rungs == Rungs(rounds=(1, 2), eta=2)
    assert len(trials) == 12
    # In whatever order they come, no more than half of them and the first go on, and at least two.
    assert 2 <= sum(rounds > 1 for rounds in reached) <= 10
    assert len(pruned) >= 2
    assert all(max(trial.intermediate_values) in (1, 2) for trial in pruned)
    assert all(trial.user_attrs["ending"].startswith("pruned after round") for trial in pruned)
    assert all(
        np.isfinite(np.load(study.paths.trial(trial.number).predictions(role))).all()
        for trial in pruned
        for role in ("stop", "ens", "test")
    )


@pytest.mark.slow
def test_a_folder_with_unreadable_files_is_searched_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = draw_folder(tmp_path / "photos", HALVES, suffix="jpg")
    (folder / "left" / "broken.jpg").write_bytes(b"no picture")
    (folder / "right" / "empty.png").touch()

    code = main(["run", "--data", "photos", "--trials", "2", "--workers", "1", *TINY])

    told = capsys.readouterr()
    assert code == 5
    assert told.out.startswith("study photos: 2 of 2 trials finished")
    assert told.err.splitlines()[-3:] == [
        "2 files could not be read and left out:",
        "  left/broken.jpg: not a picture in a known format",
        "  right/empty.png: empty file",
    ]
    log = Path("studies/photos/log.jsonl").read_text(encoding="utf-8")
    assert "left out: left/broken.jpg: not a picture" in log
    assert "left out: right/empty.png: empty file" in log
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 2


@pytest.mark.slow
def test_a_table_of_pictures_is_searched(tmp_path: Path) -> None:
    draw_folder(tmp_path / "photos", HALVES)
    rows = [
        f"photos/{name}/{index:03d}.png,{name},{'test' if index < 6 else 'train'}"
        for name, count in HALVES.items()
        for index in range(count)
    ]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")

    result = run_tiny(tmp_path, data=str(table))

    assert result.study.name == "table"
    assert result.study.counts().finished == 2
    assert result.study.record.class_names == ("left", "right")
    assert result.study.record.role_sizes["test"] == 12
    assert result.ensemble is not None
    assert result.ensemble.report.rows[0].test.n_images == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "shape"),
    [
        (("x_train", "y_train", "x_test", "y_test"), (-1,)),
        (("train_images", "train_labels", "test_images", "test_labels"), (-1, 1)),
    ],
)
def test_arrays_in_both_customs_are_searched(
    names: tuple[str, str, str, str], shape: tuple[int, ...], tmp_path: Path
) -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(80) % 2
    images = (generator.integers(0, 99, (80, 8, 8)) + 100 * labels[:, None, None]).astype(np.uint8)
    parts = (images[:60], labels[:60].reshape(shape), images[60:], labels[60:].reshape(shape))
    arrays: dict[str, Any] = dict(zip(names, parts, strict=True))
    np.savez(tmp_path / "bright.npz", **arrays)

    result = run_tiny(tmp_path, data=str(tmp_path / "bright.npz"))

    assert result.study.counts().finished == 2
    assert result.study.record.task.channels == 1
    assert result.study.record.role_sizes["test"] == 20


@pytest.mark.slow
def test_given_folders_keep_their_roles(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("val", 8), ("test", 6)):
        draw_folder(tmp_path / "photos" / split, {"left": count, "right": count})
    twin = tmp_path / "photos" / "train" / "left" / "grey.png"
    Image.new("L", (9, 7), 77).save(twin)

    result = run_tiny(tmp_path, data=str(tmp_path / "photos"), trials=1)

    sizes = result.study.record.role_sizes
    assert sizes["stop"] + sizes["ens"] <= 16
    assert sizes["test"] <= 12
    assert sum(sizes.values()) + result.study.record.dropped == 2 * (20 + 8 + 6) + 1


def test_a_study_whose_database_is_moved_away_in_its_first_run_keeps_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_database(study: Study, *_: object) -> None:
        study.paths.database.rename(tmp_path / "moved.db")
        raise SearchError("the database is gone")

    monkeypatch.setattr(running, "_search", lose_the_database)

    with pytest.raises(SearchError, match="the database is gone"):
        run_tiny(tmp_path / "studies", name="a")

    left = {path.name for path in (tmp_path / "studies" / "a").iterdir()}
    assert left >= {"roles.npz", "config.json", "log.jsonl"}


def test_images_that_are_freed_during_the_search_are_decoded_again_for_the_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(study: Study, *_: object) -> SearchEnd:
        run_trials(study.paths, ONE_THREAD, lambda: False, n_trials=2, deadline=None)
        shutil.rmtree(tmp_path / ".cache")
        return SearchEnd(interrupted=False, out_of_time=False)

    monkeypatch.setattr(running, "_search", search)

    result = run_tiny(tmp_path, name="a", limit_train=100)

    assert result.ensemble is not None
    assert result.study.record.store.is_dir()


def test_a_study_that_cannot_be_made_leaves_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", "--data", "absent", "--studies", str(tmp_path / "studies")])

    assert code == 2
    assert "absent" in capsys.readouterr().err
    assert not list((tmp_path / "studies").glob("*"))


@pytest.mark.slow
def test_a_budget_ends_the_search_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "RESERVED_SECONDS", (1.0, 60.0))
    run_tiny(tmp_path / "before", trials=1)  # starts the fork server, which takes seconds
    capsys.readouterr()
    began = time.monotonic()

    code = main(["run", "--trials", "4000", "--budget", "10s", "--workers", "1", *TINY])

    told = capsys.readouterr()
    assert code == 0
    assert time.monotonic() - began < 14
    assert " of 4000 trials finished" in told.out
    assert "next:" in told.out
    assert told.err.splitlines()[-1] == (
        "the budget ended the search before all trials were finished; for the rest: "
        "python -m search resume digits"
    )
    assert load_study().counts().running == 0


@pytest.mark.slow
def test_trials_with_a_budget_of_their_own_are_complete_when_it_is_used_up(tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path, trials=2, epochs=None, trial_budget="4s", pruner="none")
    warm = make_tiny_study(tmp_path / "warm", trials=1)  # the first trial imports for seconds
    run_trials(warm.paths, ONE_THREAD, lambda: False, n_trials=1, deadline=None)

    run_trials(study.paths, ONE_THREAD, lambda: False, n_trials=2, deadline=None)

    for trial in study.trials()[:2]:
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert len(trial.intermediate_values) == 10
        assert 0.5 < trial.user_attrs["seconds"] < 8.5


@pytest.mark.slow
@pytest.mark.parametrize("by", ["deadline", "timeout"])
def test_a_trial_that_is_out_of_time_counts_as_pruned_with_its_best_round_kept(
    by: str, tmp_path: Path
) -> None:
    timeout = {"trial_timeout": "6s"} if by == "timeout" else {}
    study = make_tiny_study(tmp_path, trials=1, epochs=100_000, pruner="none", **timeout)
    warm = make_tiny_study(tmp_path / "warm", trials=1)  # the first trial imports for seconds
    run_trials(warm.paths, ONE_THREAD, lambda: False, n_trials=1, deadline=None)
    ends = Deadline(at=time.monotonic() + 10, n_trials=1, n_workers=1)

    run_trials(
        study.paths,
        ONE_THREAD,
        lambda: False,
        n_trials=1,
        deadline=ends if by == "deadline" else None,
    )

    (trial, *_) = study.trials()
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.user_attrs["ending"] == "out of time"
    history = json.loads(study.paths.trial(0).history.read_text(encoding="utf-8"))
    best = min(history, key=lambda scores: float(scores["log_loss"]))
    assert trial.user_attrs["best_round"] == best["round"]
    # On so few images a round is judged on the whole role, if in lower precision.
    assert trial.user_attrs["log_loss"] == pytest.approx(best["log_loss"], abs=0.05)
    assert load_file(study.paths.trial(0).weights)
    assert has_predictions(study.paths.trial(0))
    assert not study.paths.trial(0).checkpoint.exists()


@pytest.mark.slow
def test_neither_tensors_nor_open_files_are_left_of_a_trial(tmp_path: Path) -> None:
    """Over 200 trials, benchmarks/leaks.py measures the memory of the whole process."""
    study = make_tiny_study(tmp_path, trials=7, sampler="random", pruner="none")
    left = []

    for n_trials in (3, 7):
        run_trials(study.paths, ONE_THREAD, lambda: False, n_trials=n_trials, deadline=None)
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        modules = [each for each in gc.get_objects() if issubclass(type(each), torch.nn.Module)]
        n_files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        left.append((len(tensors), len(modules), n_files))
        del tensors, modules

    assert study.counts().finished == 7
    assert left[1] == left[0]


def test_images_that_are_gone_are_decoded_again_if_they_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = draw_folder(tmp_path / "photos", HALVES, suffix="png")
    command = ["run", "--data", "photos", "--trials", "1", "--workers", "1", *TINY]
    assert main(command) == 0
    shutil.rmtree("studies/.cache")

    assert main(["resume", "photos", "--trials", "+1"]) == 0
    shutil.rmtree("studies/.cache")
    next((folder / "left").iterdir()).unlink()
    capsys.readouterr()

    assert main(["resume", "photos", "--trials", "+1"]) == 2
    assert "these are not the images that study 'photos' began with" in capsys.readouterr().err


def test_a_budget_too_small_for_any_trial_is_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    code = main(["run", "--trials", "4", "--budget", "1s", "--workers", "1", *TINY])

    told = capsys.readouterr()
    assert code == 3
    assert told.out.startswith("study digits: 0 of 4 trials finished")
    assert told.err.startswith("the budget ended the search before all trials were finished")

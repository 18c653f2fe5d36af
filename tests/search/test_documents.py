import os
from dataclasses import replace
from pathlib import Path

import pytest
from curves import POINT
from filelock import FileLock
from optuna.trial import create_trial
from runs import make_tiny_study

from search.curve_points import write_curve
from search.documents import best_document, list_document, status_document
from search.errors import ConfigError, NothingToDoError
from search.logs import logged_to_file
from search.storage import open_study
from search.study import Study


def test_a_fresh_study_has_no_best_and_no_verdict(unstarted: Study) -> None:
    document = status_document(unstarted)

    assert document["schema"] == 1
    assert (document["study"], document["trials"], document["finished"]) == ("fresh", 3, 0)
    assert document["best"] is document["verdict"] is None
    assert (document["data"], document["classes"], document["skipped"]) == ("digits", 10, 0)


def test_the_status_holds_the_newest_point_of_the_ensembles_curve(tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path)
    before = status_document(study)["ensemble_so_far"]

    write_curve(study.paths, [replace(POINT, n_finished=9), POINT])

    assert before is None
    so_far = status_document(study)["ensemble_so_far"]
    assert (so_far["n_finished"], so_far["ensemble"]["accuracy"]) == (10, 0.781)
    assert so_far["sentence"] == POINT.sentence()


def test_a_study_is_active_while_a_run_holds_its_lock(unstarted: Study) -> None:
    with FileLock(unstarted.paths.supervisor_lock, is_singleton=False):
        active = status_document(unstarted)["active"]

    assert active
    assert not status_document(unstarted)["active"]


def test_the_status_of_a_study_writes_nothing_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_tiny_study(tmp_path, name="a")
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    before = set(study.paths.folder.iterdir())

    assert not status_document(study)["active"]
    assert len(study.trials()) == study.counts().waiting

    assert set(study.paths.folder.iterdir()) == before


def test_a_log_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "gone" / "log.jsonl"

    with pytest.raises(ConfigError, match="cannot be written: No such file"), logged_to_file(log):
        pass


def test_the_best_of_no_complete_trial_is_nothing_to_show(unstarted: Study) -> None:
    with pytest.raises(NothingToDoError, match="study 'fresh' has no complete trial yet"):
        best_document(unstarted, 10)


def test_as_many_of_the_best_as_asked(tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path)
    for value in (0.5, 0.3, 0.4):
        open_study(study.paths).add_trial(create_trial(value=value))

    document = best_document(study, 2)

    assert [row["value"] for row in document["trials"]] == [0.3, 0.4]


def test_a_study_that_cannot_be_read_is_listed_with_its_problem(tmp_path: Path) -> None:
    make_tiny_study(tmp_path, name="good")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.db").write_bytes(b"no database" * 50)

    rows = {row["study"]: row["problem"] for row in list_document(tmp_path)["studies"]}

    assert rows["good"] is None
    assert "not the database of study 'broken'" in rows["broken"]

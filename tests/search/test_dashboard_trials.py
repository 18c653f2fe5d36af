import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, get_storage
from optuna.trial import TrialState, create_trial
from optuna_dashboard import save_note, save_plotly_graph_object, wsgi
from optuna_dashboard._serializer import serialize_frozen_trial
from plotly.graph_objects import Figure, Scatter

from search import dashboard_trials
from search.backends import SQLiteStorage
from search.dashboard_trials import with_quick_trials
from search.paths import StudyPaths
from search.wsgi_answers import Answer, answer_of

INFINITE, UNDEFINED = float("inf"), float("nan")
PARAMS = {"width": 16, "rate": 0.1, "norm": "batch", "flips": None, "crop": True, "depth": 1}
DISTRIBUTIONS = {
    "width": IntDistribution(8, 48, step=8),
    "rate": FloatDistribution(1e-3, 1.0, log=True),
    "norm": CategoricalDistribution(("batch", "none")),
    "flips": CategoricalDistribution((None, True)),
    # Equal to Python, and different on the page.
    "crop": CategoricalDistribution((False, True)),
    "depth": CategoricalDistribution((0, 1)),
}


@pytest.fixture
def storage(tmp_path: Path) -> BaseStorage:
    """Return a storage as the dashboard opens it, with a trial of each kind in it."""
    paths = StudyPaths(tmp_path)
    storage = get_storage(SQLiteStorage(paths.database, paths.trial_lock, new=True))
    study = optuna.create_study(storage=storage, study_name="kinds")
    study.set_user_attr("data", "digits")
    for value in (0.25, INFINITE, -INFINITE):
        study.add_trial(
            create_trial(
                value=value,
                params=PARAMS,
                distributions=DISTRIBUTIONS,
                user_attrs={"recipe": {"depth": [1, 2]}, "slot": 0, "sure": True, "name": "é"},
                system_attrs={"constraints": [0.5, -1.0]},
                intermediate_values={1: 0.75, 3: INFINITE, 2: -INFINITE, 4: 1e-300},
            )
        )
    few = {"width": DISTRIBUTIONS["width"]}
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            params={"width": 48},
            distributions=few,
            intermediate_values={4: 0.5},
        )
    )
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"failure": "no memory"}))
    study.enqueue_trial({"width": 8}, user_attrs={"why": "known"})
    running = study.ask()
    running.suggest_int("width", 8, 48, step=8)
    running.report(UNDEFINED, 1)
    study.enqueue_trial({"width": 48})
    return storage


def answer(application: Any, query: str = "", study: int = 1) -> Answer:
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": f"/api/studies/{study}",
        "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
    }
    return answer_of(application, environ)


def document(application: Any, query: str = "") -> Any:
    got = answer(application, query)
    assert got.status == "200 OK"
    return ordered(json.loads(got.body))


def ordered(study: Any) -> Any:
    """Sort what the dashboard takes from a set, or tells in the order in which it saw it."""
    study["union_user_attrs"].sort(key=str)
    for space in (study["union_search_space"], study["intersection_search_space"]):
        for param in space:
            param["distribution"].get("choices", []).sort(key=str)
    return study


def ours(storage: BaseStorage) -> Any:
    return with_quick_trials(wsgi(storage), storage)


def test_the_answer_is_the_dashboards_own_for_every_kind_of_trial(storage: BaseStorage) -> None:
    theirs = document(wsgi(storage))

    first, second = (document(each) for each in [ours(storage)] * 2)

    assert len(theirs["trials"]) == 7
    assert {trial["state"] for trial in theirs["trials"]} == {
        *("Complete", "Pruned", "Fail", "Running", "Waiting")
    }
    assert first == theirs
    assert second == theirs


def test_no_trial_is_written_otherwise_than_the_dashboard_writes_it(
    storage: BaseStorage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_trials, "_CHECKED", 1)

    document(ours(storage))

    assert caplog.messages == []


@pytest.mark.parametrize("query", ["after=0", "after=3", "after=6", "after=7", "after=99"])
def test_a_poll_gets_the_trials_from_the_one_it_asks_for(storage: BaseStorage, query: str) -> None:
    theirs = document(wsgi(storage), query)

    assert document(ours(storage), query) == theirs
    assert len(theirs["trials"]) == max(0, 7 - int(query.removeprefix("after=")))


@pytest.mark.parametrize("query", ["after=-1", "after=", "after=many"])
def test_a_poll_for_no_number_is_left_to_the_dashboard(
    storage: BaseStorage, query: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, got = (answer(each, query) for each in (wsgi(storage), ours(storage)))

    assert not got.status.startswith("200")
    assert (got.status, got.body) == (theirs.status, theirs.body)
    capsys.readouterr()  # the dashboard prints a traceback of its own


def test_a_study_that_is_not_there_is_the_dashboards_404(storage: BaseStorage) -> None:
    got = answer(ours(storage), study=9)

    assert got.status.startswith("404")
    assert json.loads(got.body) == {"reason": "study_id=9 is not found"}


def test_a_running_trial_is_written_anew_until_it_ends(storage: BaseStorage) -> None:
    quick, running_id = ours(storage), 6
    before = document(quick)["trials"][5]

    storage.set_trial_intermediate_value(running_id, 2, 0.125)
    reported = document(quick)["trials"][5]
    storage.set_trial_state_values(running_id, TrialState.COMPLETE, [0.5])
    ended = document(quick)["trials"][5]

    assert [len(each["intermediate_values"]) for each in (before, reported, ended)] == [1, 2, 2]
    assert [each["state"] for each in (before, reported, ended)] == [
        *("Running", "Running", "Complete")
    ]
    assert ended["values"] == [0.5]
    assert document(quick) == document(wsgi(storage))


def test_new_trials_and_what_they_have_in_common_are_seen(storage: BaseStorage) -> None:
    application: Any = wsgi(storage)
    quick = with_quick_trials(application, storage)
    document(quick)
    study = optuna.load_study(storage=storage, study_name="kinds")

    wider = {"width": IntDistribution(8, 96, step=8), "new": CategoricalDistribution(("a", "b"))}
    study.add_trial(
        create_trial(
            value=1.0,
            params={"width": 96, "new": "b"},
            distributions=wider,
            user_attrs={"sure": "no", "late": 1},
        )
    )
    application._inmemory_cache._trials_last_fetched_at.clear()  # it looks every two seconds

    got = document(quick)
    assert got == document(wsgi(storage))
    assert [param["name"] for param in got["union_search_space"]] == sorted([*PARAMS, "new"])
    assert got["trials"][7]["params"][0]["distribution"]["high"] == 96


def test_notes_on_finished_trials_and_figures_are_seen_at_the_next_poll(
    storage: BaseStorage,
) -> None:
    quick = ours(storage)
    study = optuna.load_study(storage=storage, study_name="kinds")
    assert document(quick)["trials"][0]["note"]["body"] == ""

    save_note(optuna.trial.Trial(study, 1), "It **diverged** at first.")
    save_note(study, "Photos of Tuesday.")
    save_plotly_graph_object(study, Figure(Scatter(y=[1, 2])), graph_object_id="curve")

    got = document(quick)
    assert got["trials"][0]["note"]["body"] == "It **diverged** at first."
    assert got["note"]["body"] == "Photos of Tuesday."
    assert [figure["id"] for figure in got["plotly_graph_objects"]] == ["curve"]
    assert got == document(wsgi(storage))


def test_pictures_of_a_running_trial_are_seen(storage: BaseStorage, tmp_path: Path) -> None:
    quick = ours(storage)
    picture = tmp_path / "curve.svg"
    picture.write_text("<svg/>")
    (tmp_path / "artifacts").mkdir()
    store = FileSystemArtifactStore(tmp_path / "artifacts")
    study = optuna.load_study(storage=storage, study_name="kinds")
    trial = optuna.trial.Trial(study, 6)

    name = upload_artifact(artifact_store=store, file_path=str(picture), study_or_trial=trial)

    (shown,) = document(quick)["trials"][5]["artifacts"]
    assert (shown["artifact_id"], shown["filename"]) == (name, "curve.svg")
    assert document(quick) == document(wsgi(storage))


def test_a_dashboard_that_writes_trials_otherwise_is_followed_and_told_once(
    storage: BaseStorage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serialize(study_id: int, trial: Any, attributes: Any) -> dict[str, Any]:
        written: dict[str, Any] = serialize_frozen_trial(study_id, trial, attributes)
        return {**written, "n_params": len(trial.params)}

    monkeypatch.setattr(dashboard_trials, "serialize_frozen_trial", serialize)
    quick = ours(storage)

    trials = [document(quick)["trials"] for _ in range(2)][1]

    assert [trial["n_params"] for trial in trials] == [6, 6, 6, 1, 0, 1, 0]
    assert caplog.messages == [
        "the dashboard writes trials in a way of its own; it will be slower"
    ]


def test_a_finished_trial_is_written_once(
    storage: BaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = dashboard_trials.write_trial

    def note(trial: Any, *rest: Any) -> str:
        written.append(trial.number)
        return write(trial, *rest)

    monkeypatch.setattr(dashboard_trials, "write_trial", note)
    quick = ours(storage)

    for _ in range(3):
        document(quick)

    assert sorted(written) == [0, 1, 2, 3, 4, *[5] * 3, *[6] * 3]


def test_a_value_that_is_no_number_is_a_word(storage: BaseStorage) -> None:
    trial = storage.get_all_trials(1)[5]
    assert math.isnan(trial.intermediate_values[1])

    written = json.loads(dashboard_trials.write_trial(trial, 1, {}))

    assert written["intermediate_values"] == [{"step": 1, "value": "nan"}]

import json
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search.dashboard import make_dashboard
from search.errors import ConfigError
from search.paths import StudyPaths
from search.storage import create_study, open_study

LOCAL = "127.0.0.1"


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    paths = StudyPaths(tmp_path / "tiny")
    paths.folder.mkdir()
    create_study(
        paths,
        StudyDirection.MINIMIZE,
        metric="log_loss",
        attributes={"data": "digits"},
        first_trials=(),
    )
    return paths


@pytest.fixture
def server(paths: StudyPaths) -> Iterator[WSGIServer]:
    server = make_dashboard(paths, host=LOCAL, port=0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(
    server: WSGIServer, method: str, path: str, values: object = None, **headers: str
) -> tuple[int, bytes]:
    connection = HTTPConnection(LOCAL, server.server_port, timeout=30)
    body = None if values is None else json.dumps(values)
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    response: HTTPResponse = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def test_the_study_is_served_with_its_attributes(server: WSGIServer) -> None:
    status, content = ask(server, "GET", "/api/studies/1")

    assert status == 200
    study = json.loads(content)
    assert study["name"] == "tiny"
    assert study["user_attrs"] == [{"key": "data", "value": "digits"}]
    assert study["objective_names"] == ["log_loss"]


def test_the_page_wraps_long_attributes(server: WSGIServer) -> None:
    status, page = ask(server, "GET", "/dashboard/studies/1")

    assert status == 200
    assert page.count(b"overflow-wrap: anywhere") == 1
    assert page.rstrip().endswith(b"</html>")


def test_the_pictures_of_a_trial_are_served(
    server: WSGIServer, paths: StudyPaths, tmp_path: Path
) -> None:
    trial = open_study(paths).ask()
    picture = tmp_path / "picture.svg"
    picture.write_text("<svg/>")
    store = FileSystemArtifactStore(paths.artifacts)
    name = upload_artifact(artifact_store=store, file_path=str(picture), study_or_trial=trial)

    assert ask(server, "GET", f"/artifacts/1/1/{name}") == (200, b"<svg/>")


def test_a_running_trial_can_be_failed(server: WSGIServer, paths: StudyPaths) -> None:
    study = open_study(paths)
    study.ask()

    status, _ = ask(server, "POST", "/api/trials/1/tell", {"state": "Fail"})

    assert status == 204
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL]


def test_a_dashboard_whose_parts_have_other_names_is_served_as_it_is(
    request: pytest.FixtureRequest, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_study(paths).ask()
    monkeypatch.setitem(sys.modules, "search.dashboard_trials", None)  # cannot be imported

    status, content = ask(request.getfixturevalue("server"), "GET", "/api/studies/1?after=0")

    assert status == 200
    assert [trial["state"] for trial in json.loads(content)["trials"]] == ["Running"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/1"),
        ("DELETE", "/api/studies/1/"),
        ("POST", "/api/studies/1/rename"),
        ("POST", "/api/studies"),
    ],
)
def test_a_study_can_neither_be_made_nor_renamed_nor_deleted(
    server: WSGIServer, paths: StudyPaths, method: str, path: str
) -> None:
    status, content = ask(server, method, path, {"study_name": "other", "directions": []})

    assert status == 403
    assert "deleted with its folder" in json.loads(content)["reason"]
    assert open_study(paths).study_name == "tiny"


def test_a_page_of_another_site_can_change_nothing(server: WSGIServer) -> None:
    note = {"body": "Photos of Tuesday.", "version": 1}

    strange, content = ask(server, "PUT", "/api/studies/1/note", note, Origin="http://evil.test")
    own = f"http://{LOCAL}:{server.server_port}"
    same, _ = ask(server, "PUT", "/api/studies/1/note", note, Origin=own)

    assert (strange, same) == (403, 204)
    assert "http://evil.test may change nothing" in json.loads(content)["reason"]


def test_a_port_that_is_taken_is_told_with_a_way_out(
    server: WSGIServer, paths: StudyPaths
) -> None:
    port = server.server_port

    with pytest.raises(ConfigError, match=f"cannot listen on {LOCAL}:{port}: .*in use; .*--port"):
        make_dashboard(paths, host=LOCAL, port=port)

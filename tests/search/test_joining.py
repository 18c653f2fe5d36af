import json
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial
from runs import Shell, draw_folder, make_tiny_study
from servers import Cluster

from search.absences import count_absent, describe_absent
from search.cleaning import Wish, clean_cache
from search.cli import main
from search.config import StudyConfig
from search.data.roles import read_roles
from search.data.store import is_whole
from search.errors import ConfigError, DataError, NothingToDoError, StorageError
from search.joining import JoinRequest, join_study, work_on_study
from search.owners import this_process
from search.record import ATTRIBUTE
from search.running import Observer
from search.storage import open_study
from search.study import Study, load_study

HALVES = {"left": 30, "right": 30}
_numbers = count()


@pytest.fixture
def home(tmp_path: Path, shared_database: str) -> Study:
    """Return a study of drawn pictures that another host has made on a server."""
    photos = draw_folder(tmp_path / "home" / "photos", HALVES)
    return make_tiny_study(
        tmp_path / "home",
        name=f"joined-{next(_numbers)}",
        data=str(photos),
        image_size=8,
        limit_train=None,
        storage=shared_database,
    )


def request_of(home: Study, tmp_path: Path, storage: str, **settings: object) -> JoinRequest:
    return JoinRequest(
        name=home.name,
        studies=tmp_path / "far",
        storage=storage,
        settings=StudyConfig.model_validate({"name": home.name, **settings}),
    )


def test_a_host_with_a_copy_of_the_data_makes_a_folder_of_its_own(
    home: Study, tmp_path: Path, shared_database: str
) -> None:
    copied = draw_folder(tmp_path / "copied", HALVES)

    joined = join_study(request_of(home, tmp_path, shared_database, data=str(copied)), Observer())

    here, there = read_roles(joined.paths.roles), read_roles(home.paths.roles)
    assert here.fingerprint == there.fingerprint
    assert here.train.tolist() == there.train.tolist()
    assert joined.record.store.is_relative_to(tmp_path / "far")
    assert joined.record.data_fingerprint == home.record.data_fingerprint
    assert open_study(joined.paths).user_attrs == open_study(home.paths).user_attrs
    assert load_study(home.name, studies=tmp_path / "far").record == home.record
    clean_cache(tmp_path / "far", Wish())
    assert is_whole(joined.record.store)  # though the study says where those of `home` are


def test_images_that_are_decoded_already_are_found(
    home: Study, tmp_path: Path, shared_database: str
) -> None:
    joined = join_study(request_of(home, tmp_path, shared_database), Observer())

    assert joined.record.store == home.record.store


def test_a_host_has_devices_and_time_of_its_own(
    home: Study, tmp_path: Path, shared_database: str
) -> None:
    request = request_of(home, tmp_path, shared_database, devices="cpu", workers=3, budget="5m")

    config = join_study(request, Observer()).record.config

    assert (config.devices, config.workers, config.budget) == ("cpu", 3, "5m")
    assert (config.trials, config.seed) == (home.record.config.trials, home.record.config.seed)


def test_other_images_are_refused_with_the_difference(
    home: Study, tmp_path: Path, shared_database: str
) -> None:
    more = draw_folder(tmp_path / "more", {"left": 30, "right": 40})

    with pytest.raises(
        DataError, match=r"not the images of study 'joined-\d+': train 49 here and"
    ):
        join_study(request_of(home, tmp_path, shared_database, data=str(more)), Observer())

    assert not (tmp_path / "far" / home.name).exists()


def test_changed_pictures_are_refused(home: Study, tmp_path: Path, shared_database: str) -> None:
    changed = draw_folder(tmp_path / "changed", {"right": 30, "left": 30})

    with pytest.raises(DataError, match="as many for each role, but with other pixels or labels"):
        join_study(request_of(home, tmp_path, shared_database, data=str(changed)), Observer())


def test_the_same_pictures_under_other_names_are_refused(
    home: Study, tmp_path: Path, shared_database: str
) -> None:
    renamed = draw_folder(tmp_path / "renamed", HALVES)
    for index, picture in enumerate(sorted((renamed / "left").iterdir(), reverse=True)):
        picture.rename(picture.with_name(f"other{index:03d}.png"))

    with pytest.raises(DataError, match="they are the same, but in another order"):
        join_study(request_of(home, tmp_path, shared_database, data=str(renamed)), Observer())


def test_a_host_whose_time_is_up_begins_no_trial(
    home: Study, tmp_path: Path, shared_database: str
) -> None:
    request = request_of(home, tmp_path, shared_database, devices="cpu", workers=1, budget="1s")

    joined = work_on_study(request, Observer())

    assert joined.end.out_of_time
    assert joined.ran == ()
    assert {trial.state for trial in home.trials()} == {TrialState.WAITING}


def change_record(home: Study, **changes: object) -> None:
    study = open_study(home.paths)
    study.set_user_attr(ATTRIBUTE, {**study.user_attrs[ATTRIBUTE], **changes})


def test_another_version_is_refused(home: Study, tmp_path: Path, shared_database: str) -> None:
    change_record(home, version="0.0.9")

    with pytest.raises(
        StorageError, match=r"is run by concertino 0\.0\.9, this is .* need the sa"
    ):
        join_study(request_of(home, tmp_path, shared_database), Observer())


def test_another_space_is_refused(home: Study, tmp_path: Path, shared_database: str) -> None:
    change_record(home, space_fingerprint="0123456789abcdef")

    with pytest.raises(StorageError, match="was made with another version of the space"):
        join_study(request_of(home, tmp_path, shared_database), Observer())


def test_a_study_that_is_not_there_is_said_with_those_that_are(
    home: Study, tmp_path: Path, shared_database: str
) -> None:
    request = JoinRequest(
        name="absent",
        studies=tmp_path / "far",
        storage=shared_database,
        settings=StudyConfig(name="absent"),
    )

    with pytest.raises(NothingToDoError, match=rf"no study 'absent'; it has .*{home.name}"):
        join_study(request, Observer())

    assert not (tmp_path / "far").exists()


def test_another_place_than_that_of_the_folder_is_refused(
    home: Study, tmp_path: Path, cluster: Cluster
) -> None:
    request = JoinRequest(
        name=home.name,
        studies=tmp_path / "home",
        storage=cluster.url("elsewhere"),
        settings=StudyConfig(name=home.name),
    )

    with pytest.raises(ConfigError, match="hosts that share a folder need the same URL"):
        join_study(request, Observer())


def test_a_host_may_come_before_the_study(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    looks: list[bool] = []

    def make_at_the_second_look() -> bool:
        looks.append(True)
        if len(looks) == 2:
            make_tiny_study(studies, name="late")
        return False

    request = JoinRequest(
        name="late", studies=studies, settings=StudyConfig(name="late"), wait_seconds=60
    )

    study = join_study(request, Observer(stop_requested=make_at_the_second_look))

    assert study.record.config.name == "late"


def test_a_host_that_waits_can_be_sent_away(tmp_path: Path) -> None:
    shell = Shell(folder=tmp_path)
    worker = shell.start("worker", "late", "--wait", "5m", "--studies", str(tmp_path))
    status = Path(f"/proc/{worker.process.pid}/status")

    def minds_the_signal() -> bool:
        caught = next(line for line in status.read_text().splitlines() if "SigCgt" in line)
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    worker.wait_for(minds_the_signal)
    worker.process.terminate()
    ran = worker.wait()

    assert ran.code == 143
    assert "worker: interrupted; study 'late' has not been made yet" in ran.err
    assert "Traceback" not in ran.err


def add_finished(study: Study, host: str) -> None:
    """Add a trial that a host has finished; its files are there."""
    open_study(study.paths).add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=0.5,
            user_attrs={
                "log_loss": 0.5,
                "milliseconds": 1.0,
                "owner": {**this_process().to_json(), "host": host},
                "recipe": {"architecture": {"family": "plain"}},
            },
        )
    )


def test_it_is_told_where_the_files_of_trials_lie(tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path, name="scattered")
    assert describe_absent(study) == ""
    for host in ("near", "far", "far"):
        add_finished(study, host)
    n_waiting = len(study.trials()) - 3
    files = study.paths.trial(n_waiting)
    files.folder.mkdir(parents=True)
    for role in ("stop", "ens", "test"):
        files.predictions(role).touch()

    study = load_study("scattered", studies=tmp_path)

    assert count_absent(study) == {"far": 2}
    assert describe_absent(study).startswith("the files of 2 trials are not in ")
    assert ": 2 on far; copy them there" in describe_absent(study)


@pytest.fixture
def shell_of(tmp_path: Path) -> Callable[[str], Shell]:
    def make(host: str) -> Shell:
        folder = tmp_path / host
        folder.mkdir(exist_ok=True)
        return Shell(folder=folder)

    return make


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_hands_its_trial_back_and_another_one_ends_the_study(
    shell_of: Callable[[str], Shell],
    shared_database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = make_tiny_study(
        tmp_path / "studies", name="far-away", storage=shared_database, trials=2, epochs=60
    )
    far = shell_of("far")
    words = ("worker", "far-away", "--storage", shared_database, "--workers", "1", "--json")
    study = open_study(home.paths)

    def n_reports() -> int:
        return sum(len(trial.intermediate_values) for trial in study.get_trials(deepcopy=False))

    first = far.start(*words, "--devices", "cpu")
    first.wait_for(lambda: n_reports() >= 2, seconds=300)
    first.process.send_signal(signal.SIGTERM)
    stopped = first.wait(300)
    states = [trial.state for trial in study.trials]
    monkeypatch.setattr(sys, "argv", ["search/__main__.py"])
    finished = far.run(*words, "--devices", "cpu", seconds=500)

    assert (stopped.code, json.loads(stopped.out)["interrupted"]) == (143, True)
    assert TrialState.RUNNING not in states
    assert finished.code == 0, finished.err
    document = json.loads(finished.out)
    assert (document["finished"], document["finished_here"], document["own_folder"]) == (
        2,
        2,
        True,
    )
    assert "rsync -a " in finished.err
    assert (
        "a%20b"
        not in finished.err + finished.out + (far.studies / "far-away/log.jsonl").read_text()
    )
    assert main(["ensemble", "far-away", "--studies", str(tmp_path / "studies")]) == 3
    assert "the files of 2 trials are not in" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_and_a_worker_share_the_trials_of_a_study(
    shell_of: Callable[[str], Shell], shared_database: str
) -> None:
    home, far = shell_of("home"), shell_of("far")
    tiny = ("--epochs", "2", "--space", "small", "--vary.width", "8", "--limit-train", "200")
    storage = ("--storage", shared_database, "--devices", "cpu", "--workers", "1")

    run = home.start("run", "--name", "both", "--trials", "6", *tiny, *storage, name="both")
    guest = far.run("worker", "both", "--wait", "5m", "--json", *storage, seconds=500)
    ran = run.wait(500)

    study = load_study("both", studies=home.studies)
    here = json.loads(guest.out)["finished_here"]
    assert guest.code == 0, guest.err
    assert study.counts().finished == 6
    assert [trial.number for trial in study.trials() if trial.state.is_finished()] == [*range(6)]
    assert count_absent(study).total() == here
    assert ran.code == (5 if here else 0)

import subprocess
import sys
from itertools import count
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard import save_note
from optuna_dashboard._note import get_note_from_system_attrs
from runs import make_tiny_study
from servers import Cluster

from search.backends import PostgreSQLStorage
from search.cli import main
from search.copying import copy_study
from search.errors import ConfigError, SearchError, StorageError
from search.location import Server, SQLiteFile, location_of, parse_server
from search.owners import this_process
from search.storage import ask, open_study, tell
from search.study import Study, load_study

_numbers = count()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Return a study on a file with a trial of each kind in it."""
    study = make_tiny_study(tmp_path, name=f"moved-{next(_numbers)}", trials=50)
    opened = open_study(study.paths)
    distributions = {
        "rate": FloatDistribution(1e-3, 1.0, log=True),
        "width": IntDistribution(8, 48, step=8),
        "norm": CategoricalDistribution(("batch", None, 3, True)),
    }
    for value in (0.1 + 0.2, float("inf"), float("-inf")):
        opened.add_trial(
            create_trial(
                value=value,
                params={"rate": 0.123456789012345, "width": 16, "norm": None},
                distributions=distributions,
                user_attrs={"recipe": {"depth": [1, 2]}, "text": "ü'\"\n\0" * 1000},
                system_attrs={"artifacts": "x"},
                intermediate_values={1: 0.75, 3: float("inf"), 2: float("nan")},
            )
        )
    opened.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={4: 0.5}))
    opened.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"failure": "ValueError: no"}))
    done = ask(opened, 50)
    assert done is not None
    save_note(opened, "of the study")
    save_note(done, "of a trial")
    tell(opened, done, TrialState.COMPLETE, 1 / 3)
    return study


def everything(study: Study) -> tuple[object, ...]:
    """Return all that a study has, as values that can be compared."""
    opened = open_study(study.paths)
    attributes = opened._storage.get_study_system_attrs(opened._study_id)
    notes = [
        get_note_from_system_attrs(attributes, trial_id)["body"]
        for trial_id in (None, *(trial._trial_id for trial in opened.trials))
    ]
    return (
        opened.direction,
        opened.metric_names,
        opened.user_attrs,
        len(attributes),
        notes,
        [fields(trial) for trial in opened.get_trials()],
    )


def fields(trial: FrozenTrial) -> tuple[object, ...]:
    return (
        *(trial.number, trial.state, trial.values, trial.user_attrs, trial.system_attrs),
        *(list(trial.params.items()), trial.distributions, repr(trial.intermediate_values)),
        *(trial.datetime_start, trial.datetime_complete),
    )


def test_a_study_is_the_same_on_a_server_and_back_on_a_file(
    study: Study, cluster: Cluster, tmp_path: Path
) -> None:
    url, before = cluster.new_database(), everything(study)
    make_other(url, "first")

    to_server = copy_study(study.paths, url)
    on_server = everything(load_study(study.name, studies=tmp_path))
    to_file = copy_study(study.paths, str(study.paths.folder))
    on_file = everything(load_study(study.name, studies=tmp_path))

    assert before[4].count("of a trial") == 1  # type: ignore[attr-defined]
    assert on_server == before
    assert on_file == before
    assert to_server.n_trials == to_file.n_trials == len(study.trials())
    assert (to_server.source, to_file.source) == (SQLiteFile(study.paths.database), Server(url))
    assert to_server.kept == str(study.paths.folder / "study-copied-1.db")
    assert to_file.kept == f"study '{study.name} (copied 1)' there"


def make_other(url: str, name: str) -> None:
    """Make a study of somebody else's on a server."""
    storage = PostgreSQLStorage(parse_server(url), name, new=True)
    optuna.create_study(storage=storage, study_name=name, direction="maximize")


def test_a_copied_study_goes_on(study: Study, cluster: Cluster) -> None:
    n_trials = len(study.trials())

    copy_study(study.paths, cluster.new_database())

    opened = open_study(study.paths)
    n_waiting = len(opened.get_trials(states=(TrialState.WAITING,)))
    asked = [ask(opened, 50) for _ in range(n_waiting + 1)]
    assert asked[-1] is not None
    assert asked[-1].number == n_trials
    assert tell(opened, asked[-1], TrialState.COMPLETE, 0.5)
    assert not study.paths.database.exists()


def test_a_trial_of_a_dead_process_is_handed_back_first(study: Study, cluster: Cluster) -> None:
    trial = ask(open_study(study.paths), 50)
    assert trial is not None
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    trial.set_user_attr("owner", {**this_process().to_json(), "pid": process.pid})

    copy_study(study.paths, cluster.new_database())

    assert open_study(study.paths).trials[trial.number].state == TrialState.WAITING


def test_nothing_is_copied_while_a_trial_runs(study: Study, cluster: Cluster) -> None:
    ask(open_study(study.paths), 50)

    with pytest.raises(SearchError, match=r"1 trials of study 'moved-\d+' are running, trial \d"):
        copy_study(study.paths, cluster.new_database())

    assert location_of(study.paths) == SQLiteFile(study.paths.database)


def test_nothing_is_copied_while_a_run_is_on_it(study: Study, cluster: Cluster) -> None:
    with (
        FileLock(study.paths.supervisor_lock),
        pytest.raises(SearchError, match="a run is working on study"),
    ):
        copy_study(study.paths, cluster.new_database())


def test_a_study_of_that_name_is_not_replaced(study: Study, cluster: Cluster) -> None:
    url = cluster.new_database()
    make_other(url, study.name)

    with pytest.raises(StorageError, match=f"has a study '{study.name}' already"):
        copy_study(study.paths, url)

    assert location_of(study.paths) == SQLiteFile(study.paths.database)


def test_a_copy_that_fails_changes_nothing(
    study: Study, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, before = cluster.new_database(), everything(study)
    monkeypatch.setattr("search.copying._OF_TRIAL", ("trial_params", "no_such_table"))

    with pytest.raises(KeyError):
        copy_study(study.paths, url)

    monkeypatch.undo()
    assert everything(study) == before
    assert copy_study(study.paths, url).n_trials == len(study.trials())


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("mysql://h/d", "--to: expected an URL such as postgresql"),
        ("elsewhere", "or the study's own folder, '.*moved-.*', for SQLite; got 'elsewhere'"),
    ],
)
def test_a_target_that_is_none_is_refused(study: Study, to: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        copy_study(study.paths, to)


def test_a_study_is_not_copied_to_where_it_is(study: Study) -> None:
    with pytest.raises(ConfigError, match=r"is stored in .*study\.db already"):
        copy_study(study.paths, str(study.paths.folder))


def test_the_command_says_what_was_copied(
    study: Study, cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = cluster.new_database()

    assert main(["copy", study.name, "--to", url, "--studies", str(tmp_path)]) == 0

    told = capsys.readouterr().out
    assert told.startswith(f"study {study.name}: {len(study.trials())} trials copied from ")
    assert "postgresql://ann:***@" in told

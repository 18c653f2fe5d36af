import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from runs import until
from sqlalchemy import text

from search.errors import StorageError
from search.heartbeats import beating
from search.location import Location
from search.orphans import BEAT_SECONDS, STALE_SECONDS, OrphanWatch
from search.owners import this_process
from search.paths import StudyPaths
from search.storage import ask, backend_of, create_study, give_back, open_study

N_LOOKS = round(STALE_SECONDS / BEAT_SECONDS)


class Clock:
    """A clock that moves when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def study(place: tuple[StudyPaths, Location]) -> optuna.Study:
    paths, location = place
    create_study(
        paths,
        StudyDirection.MINIMIZE,
        metric="log_loss",
        attributes={},
        first_trials=[],
        location=location,
    )
    return open_study(paths)


@pytest.fixture
def far_trial(study: optuna.Study) -> optuna.Trial:
    """Return a trial that another host runs."""
    trial = ask(study, 5)
    assert trial is not None
    trial.set_user_attr("owner", {**this_process().to_json(), "host": "far", "boot": "another"})
    return trial


def give_sign(study: optuna.Study, trial: optuna.Trial, time: str) -> None:
    """Write a sign of life as if the database's clock had shown that time."""
    backend = backend_of(study)
    backend.record_heartbeat(trial._trial_id)
    with backend.engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = :time"), {"time": time})


def look(watch: OrphanWatch, clock: Clock, *, seconds: float = BEAT_SECONDS) -> list[int]:
    clock.now += seconds
    return watch.hand_back(suspect=False)


def test_a_trial_of_another_host_is_stale_after_two_minutes_without_a_sign(
    study: optuna.Study, far_trial: optuna.Trial
) -> None:
    clock = Clock()
    watch = OrphanWatch(study, clock)
    give_sign(study, far_trial, "2026-01-01 00:00:00")

    looks = [look(watch, clock) for _ in range(N_LOOKS + 1)]

    assert looks == [[]] * N_LOOKS + [[0]]
    assert study.trials[0].state == TrialState.WAITING


def test_a_sign_counts_whatever_the_clock_of_the_database_says(
    study: optuna.Study, far_trial: optuna.Trial
) -> None:
    clock = Clock()
    watch = OrphanWatch(study, clock)

    for number in range(4 * N_LOOKS):  # backwards, a year at a time
        if number % 4 == 0:
            give_sign(study, far_trial, f"{2100 - number}-01-01 00:00:00")
        assert look(watch, clock) == []

    assert study.trials[0].state == TrialState.RUNNING


def test_a_pause_of_the_watch_is_no_silence_of_the_watched(
    study: optuna.Study, far_trial: optuna.Trial
) -> None:
    clock = Clock()
    watch = OrphanWatch(study, clock)
    look(watch, clock)

    assert look(watch, clock, seconds=36_000) == []
    give_sign(study, far_trial, "2026-01-01 00:00:00")
    assert look(watch, clock) == []
    assert study.trials[0].state == TrialState.RUNNING


def test_a_host_that_never_gave_a_sign_is_waited_for_as_long(
    study: optuna.Study, far_trial: optuna.Trial
) -> None:
    clock = Clock()
    watch = OrphanWatch(study, clock)
    assert far_trial.number == 0

    looks = [look(watch, clock) for _ in range(N_LOOKS + 1)]

    assert looks[-1] == [0]
    assert not any(looks[:-1])


def test_a_trial_without_owner_is_an_orphan(study: optuna.Study) -> None:
    study.ask()  # and its process was killed before it could say who it is

    assert OrphanWatch(study).hand_back(suspect=False) == [0]


def test_a_trial_whose_second_process_could_not_say_who_it_is_is_an_orphan(
    study: optuna.Study,
) -> None:
    trial = ask(study, 5)
    assert trial is not None
    assert give_back(study, trial)
    study.ask()

    assert OrphanWatch(study).hand_back(suspect=False) == [0]  # though the first process lives


def test_a_trial_is_in_doubt_until_its_host_gives_another_sign(
    study: optuna.Study, far_trial: optuna.Trial
) -> None:
    clock = Clock()
    watch = OrphanWatch(study, clock)
    ask(study, 5)  # of this process, which lives
    give_sign(study, far_trial, "2026-01-01 00:00:00")
    look(watch, clock)
    assert watch.n_doubtful(study.trials) == 1

    give_sign(study, far_trial, "2026-01-01 00:00:15")
    look(watch, clock)

    assert watch.n_doubtful(study.trials) == 0


def test_a_loop_that_turns_quickly_looks_now_and_then(
    study: optuna.Study, far_trial: optuna.Trial
) -> None:
    clock = Clock()
    watch = OrphanWatch(study, clock)
    assert far_trial.number == 0

    found = []
    for _ in range(20 * N_LOOKS):
        clock.now += BEAT_SECONDS / 10
        if watch.is_time_to_look():
            found += watch.hand_back(suspect=True)

    assert found == [0]
    assert study.trials[0].user_attrs["deaths"] == [1, 0]


def test_signs_of_life_are_given_while_a_trial_runs(study: optuna.Study) -> None:
    trial = ask(study, 1)
    assert trial is not None

    with beating(study, trial, seconds=0.02) as lost:
        until(lambda: len(backend_of(study).heartbeats(study._study_id)) == 1, seconds=30)
        assert not lost()


def test_a_trial_that_was_taken_away_is_noticed(
    study: optuna.Study, far_trial: optuna.Trial
) -> None:
    with beating(study, far_trial, seconds=0.02) as lost:
        until(lost, seconds=30)


def test_signs_go_on_after_an_error_of_the_storage(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trial = ask(study, 1)
    assert trial is not None
    backend = backend_of(study)
    record, errors = backend.record_heartbeat, [StorageError("away."), StorageError("away.")]

    def record_or_fail(trial_id: int) -> None:
        if errors:
            raise errors.pop()
        record(trial_id)

    monkeypatch.setattr(backend, "record_heartbeat", record_or_fail)
    with beating(study, trial, seconds=0.02):
        until(lambda: len(backend.heartbeats(study._study_id)) == 1, seconds=30)

    assert caplog.text.count("no sign of life could be given: away.") == 2


def test_what_is_handed_back_is_told(
    study: optuna.Study, far_trial: optuna.Trial, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    watch = OrphanWatch(study, clock)

    while not look(watch, clock):
        pass

    pid = far_trial.user_attrs["owner"]["pid"]
    assert f"trial 0: process {pid} on far is gone; handed back" in caplog.text

import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from optuna.trial import TrialState, create_trial
from pretended import PretendedSlot, read_notes
from runs import TINY, make_tiny_study

from search import places, running, supervisor
from search.cli import main
from search.devices import MemoryUse, Slot
from search.documents import status_document
from search.errors import SearchError
from search.logs import log_to_file
from search.loop import run_trials
from search.owners import this_process
from search.schedule import Deadline
from search.storage import open_study
from search.study import Study
from search.supervisor import SearchEnd, Snapshot, Supervisor

HERE = Slot(number=0, device="cpu", n_threads=1)
ALSO_HERE = Slot(number=1, device="cpu", n_threads=1)
# A GPU that nobody has: its worker dies as soon as it wants to compute.
GONE = Slot(number=1, device="cuda:99", n_threads=1)


@pytest.fixture(autouse=True)
def _without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.05)


def supervise(
    study: Study,
    slots: Sequence[Slot],
    *,
    on_change: Callable[[Snapshot], None] = lambda _: None,
    deadline: Deadline | None = None,
) -> SearchEnd:
    return Supervisor(
        paths=study.paths,
        record=study.record,
        slots=list(slots),
        deadline=deadline,
        on_change=on_change,
        stop_requested=lambda: False,
    ).run()


def test_a_study_that_is_deleted_meanwhile_ends_the_run_and_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_tiny_study(tmp_path, name="a")

    def delete(*_: object) -> None:
        shutil.rmtree(study.paths.folder)

    monkeypatch.setattr(Supervisor, "_start_missing", delete)

    with pytest.raises(SearchError, match=r"^study 'a' was deleted while it ran\.$"):
        supervise(study, [HERE])

    assert not study.paths.database.exists()


def workers() -> list[int]:
    """Return the process numbers of the workers of this process."""
    children = multiprocessing.active_children()
    return [child.pid or 0 for child in children if child.name.startswith("worker-")]


def wait_for_reports(snapshot: Snapshot, at_least: int) -> bool:
    """Tell whether a running trial has reported so often."""
    return any(
        trial.state == TrialState.RUNNING and len(trial.intermediate_values) >= at_least
        for trial in snapshot.trials
    )


@pytest.mark.slow
def test_a_slot_whose_worker_dies_three_times_at_once_is_stopped_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    study = make_tiny_study(tmp_path, trials=16)
    seen: list[str] = []

    end = supervise(
        study,
        [HERE, GONE],
        on_change=lambda now: seen.extend(each.sentence() for each in now.stopped_slots),
    )

    (stopped,) = end.stopped_slots
    assert stopped.sentence().startswith(
        "slot 1 (cuda:99) is stopped: its worker died 3 times at once, last by "
    )
    assert "RuntimeError: " in stopped.reason
    assert not end.out_of_time
    assert study.counts().finished == 16
    assert study.counts().failed == study.counts().running == 0
    assert set(seen) == {stopped.sentence()}
    assert status_document(study)["stopped_slots"] == [stopped.sentence()]

    supervise(study, [HERE])

    assert status_document(study)["stopped_slots"] == []


@pytest.mark.slow
def test_a_run_fails_when_no_slot_is_left(tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path, trials=4)

    with pytest.raises(
        SearchError, match=r"no slot is left: slot 1 \(cuda:99\) is stopped: its worker died 3"
    ):
        supervise(study, [GONE])

    assert study.counts().running == study.counts().finished == 0


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "code"), [([HERE, GONE], 0), ([GONE], 1)])
def test_a_stopped_slot_is_named_at_the_end_and_costs_nothing_if_all_trials_are_there(
    slots: list[Slot],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(running, "plan_slots", lambda *_, **__: slots)

    ended = main(["run", "--trials", "16", "--studies", str(tmp_path), *TINY])

    told = capsys.readouterr()
    assert ended == code
    assert "slot 1 (cuda:99) is stopped: its worker died 3 times at once" in told.err
    assert told.out.startswith("study digits: 16 of 16 trials") == (code == 0)


@pytest.mark.slow
def test_trials_that_all_fail_end_the_run_and_not_the_next_one(tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path, trials=3)
    in_the_way = study.paths.folder / "trials"
    in_the_way.touch()

    with pytest.raises(SearchError, match=r"^the last 5 trials all failed: \w*Error: "):
        supervise(study, [HERE, ALSO_HERE])
    in_the_way.unlink()
    supervise(study, [HERE, ALSO_HERE])

    assert study.counts().finished == 3


@pytest.mark.slow
def test_trials_that_all_fail_on_another_host_do_not_stop_a_slot_here(tmp_path: Path) -> None:
    study = make_tiny_study(tmp_path, trials=2)
    owner = replace(this_process(), host="far", boot="another").to_json()
    far = {"failure": "OSError: gone", "slot": 0, "owner": owner}
    told: list[int] = []

    def fail_far_away(snapshot: Snapshot) -> None:
        told.append(len(snapshot.trials))
        if len(told) == 1:
            for _ in range(5):
                open_study(study.paths).add_trial(
                    create_trial(state=TrialState.FAIL, user_attrs=far)
                )

    end = supervise(study, [HERE], on_change=fail_far_away)

    assert not end.stopped_slots
    assert study.counts().finished == 2
    assert study.counts().failed == 5


def test_a_slot_is_failing_if_its_newest_five_trials_all_failed_by_themselves() -> None:
    failed = create_trial(state=TrialState.FAIL, user_attrs={"failure": "OSError: gone"})
    by_hand = create_trial(state=TrialState.FAIL)
    fine = create_trial(state=TrialState.COMPLETE, value=0.5)

    assert supervisor.why_failing([fine, *[failed] * 5]) == (
        "the last 5 trials all failed: OSError: gone"
    )
    assert not supervisor.why_failing([failed] * 4)
    assert not supervisor.why_failing([*[failed] * 5, fine])
    assert not supervisor.why_failing([failed, failed, by_hand, failed, failed])


@dataclass
class Once:
    """Does something to the only worker, when a trial has reported so often, and only once."""

    act: Callable[[int], None]
    after_reports: int = 2
    done: list[int] = field(default_factory=list)

    def __call__(self, snapshot: Snapshot) -> None:
        if not self.done and wait_for_reports(snapshot, self.after_reports):
            self.done.append(workers()[0])
            self.act(self.done[0])


@pytest.mark.slow
def test_a_worker_that_hangs_within_a_step_is_ended_and_its_trial_counts_as_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SILENT_SECONDS", (0.0, 120.0))
    study = make_tiny_study(
        tmp_path, trials=3, epochs=30, limit_train=400, trial_timeout="6s", pruner="none"
    )
    hang = Once(lambda pid: os.kill(pid, signal.SIGSTOP))

    end = supervise(study, [HERE], on_change=hang)

    trials = study.trials()[:3]
    hung = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert hang.done
    assert not end.stopped_slots
    assert study.counts().finished == 3
    assert [trial.user_attrs["ending"][:33] for trial in hung] == [
        "out of time: no sign of life for "
    ]
    assert not study.paths.trial(hung[0].number).checkpoint.exists()


@pytest.mark.slow
def test_a_search_ends_soon_after_its_deadline_though_a_worker_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SECONDS_TO_STOP", 1.0)
    study = make_tiny_study(tmp_path, trials=3, epochs=4000, limit_train=400, pruner="none")
    hang = Once(lambda pid: os.kill(pid, signal.SIGSTOP))
    deadline = Deadline(at=time.monotonic() + 8, n_trials=3, n_workers=1)

    end = supervise(study, [HERE], on_change=hang, deadline=deadline)

    assert hang.done
    assert end.out_of_time
    assert deadline.overdue() < 30
    assert study.counts().running == study.counts().failed == 0
    assert not workers()


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_again_and_again_equals_an_unbroken_one(
    tmp_path: Path,
) -> None:
    """Four deaths within seconds: each worker has got on, so its slot goes on too."""
    settings = {"trials": 1, "epochs": 800, "limit_train": 400, "pruner": "none"}
    broken, unbroken = (make_tiny_study(tmp_path / name, **settings) for name in ("a", "b"))
    killed: list[int] = []
    log_to = log_to_file(broken.paths.log)

    def kill(_: Snapshot) -> None:
        """Kill the worker four times, each time when the trial has a newer checkpoint."""
        rounds = [0, *resumptions(broken)][-1]
        if len(killed) < 4 and len(resumptions(broken)) == len(killed):
            checkpoint = broken.paths.trial(0).checkpoint
            if checkpoint.exists() and torch.load(checkpoint)["history"][-1]["round"] > rounds:
                killed.append(workers()[0])
                os.kill(killed[-1], signal.SIGKILL)

    end = supervise(broken, [HERE], on_change=kill)
    logging.getLogger().removeHandler(log_to)
    log_to.close()
    run_trials(unbroken.paths, HERE, lambda: False, n_trials=1, deadline=None)

    (trial, *_), (other, *_) = broken.trials(), unbroken.trials()
    went_on = resumptions(broken)
    assert len(set(killed)) == 4
    assert not end.stopped_slots
    assert trial.state == TrialState.COMPLETE
    assert len(went_on) == 4
    assert went_on[0] > 0
    assert went_on == sorted(set(went_on))
    assert sorted(trial.intermediate_values) == [*range(1, 801)]
    assert trial.intermediate_values == other.intermediate_values
    assert trial.values == other.values
    for role in ("stop", "ens", "test"):
        np.testing.assert_array_equal(
            *(np.load(study.paths.trial(0).predictions(role)) for study in (broken, unbroken))
        )


def resumptions(study: Study) -> list[int]:
    """Return the rounds after which trials went on, by the log."""
    messages = [json.loads(line)["message"] for line in study.paths.log.read_text().splitlines()]
    return [int(text.split()[-1]) for text in messages if "goes on after round" in text]


@pytest.mark.slow
def test_workers_see_the_gpu_of_their_slot_alone_and_so_do_those_that_replace_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7f")
    study = make_tiny_study(tmp_path, trials=6, epochs=60, limit_train=400, pruner="none")
    notes = tmp_path / "notes"
    notes.mkdir()
    slots = [
        PretendedSlot(number=number, device=f"cuda:{number % 2}", n_threads=1, notes=notes)
        for number in range(3)
    ]
    kill = Once(lambda pid: os.kill(pid, signal.SIGKILL))

    supervise(study, slots, on_change=kill)

    seen = read_notes(notes)
    assert kill.done
    assert study.counts().finished == 6
    assert {number: set(visible) for number, visible in seen.items()} == {
        0: {"4"},
        1: {"GPU-7f"},
        2: {"4"},
    }
    assert sum(len(visible) for visible in seen.values()) == 4  # one was replaced


@pytest.mark.slow
def test_slots_open_as_soon_as_a_trial_has_shown_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_tiny_study(
        tmp_path, trials=12, epochs=40, limit_train=400, workers=3, slots_per_device="auto"
    )
    notes = tmp_path / "notes"
    notes.mkdir()
    use = MemoryUse(peak_bytes=10**9, total_bytes=16 * 10**9)
    monkeypatch.setattr(supervisor, "measured_memory", lambda trials: {0: use} if trials else {})
    n_slots: list[int] = []

    supervise(
        study,
        [PretendedSlot(number=0, device="cuda:1", n_threads=1, notes=notes)],
        on_change=lambda snapshot: n_slots.append(snapshot.n_slots),
    )

    assert n_slots[0] == 1
    assert n_slots[-1] == 3
    assert study.counts().finished == 12
    assert {number: set(visible) for number, visible in read_notes(notes).items()} == {
        number: {"1"} for number in range(3)
    }

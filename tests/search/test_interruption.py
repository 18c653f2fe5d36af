import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from runs import (
    Command,
    Shell,
    is_alive,
    make_tiny_study,
    n_reports,
    read_states,
    until,
    worker_pids,
)

from ensembles.inputs import ImageInput
from search.cli import main
from search.data import decoding, store
from search.devices import Slot
from search.interruption import watched_signals
from search.loop import run_trials
from search.orphans import OrphanWatch
from search.storage import open_study

# A trial of one second or two, so that a signal meets it in the middle.
LONGER = (
    *("--space", "small", "--vary.width", "8", "--vary.depth", "2", "--epochs", "40"),
    *("--limit-train", "400", "--workers", "2", "--pruner", "none", "--devices", "cpu"),
)
N_TRIALS = 6
N_TRIALS_AT_THE_END = 10
"""So many that work is left when a killed worker's place may be filled, a second later."""


def start_and_wait_for_reports(
    shell: Shell, *, n_trials: int = N_TRIALS, more: Sequence[str] = ()
) -> Command:
    """Start a search; return when both workers are in the middle of a trial."""
    database = shell.studies / "digits" / "study.db"
    before = n_reports(database)
    command = shell.start("run", *LONGER, "--trials", str(n_trials), *more)
    command.wait_for(lambda: read_states(database).count("RUNNING") == 2)
    command.wait_for(lambda: n_reports(database) >= before + 4)
    return command


def assert_handed_back(command: Command, *, code: int) -> None:
    stopped = command.wait()
    states = read_states(command.database)
    assert stopped.code == code
    assert stopped.err.splitlines()[-1] == (
        "interrupted; everything is kept, and running trials go on from their last checkpoint: "
        "python -m search resume digits"
    )
    assert "Traceback" not in stopped.err
    assert "RUNNING" not in states
    assert states.count("COMPLETE") < N_TRIALS
    assert not command.database.with_name("ensemble.json").exists()


def assert_whole(shell: Shell, *, n_trials: int) -> None:
    """Check that the study has exactly the trials that were asked, none twice, none lost."""
    states = read_states(shell.studies / "digits" / "study.db")
    assert states[:n_trials] == ["COMPLETE"] * n_trials
    assert set(states[n_trials:]) <= {"WAITING"}
    trials = shell.study("digits").trials()[:n_trials]
    assert all(sorted(trial.intermediate_values) == [*range(1, 41)] for trial in trials)
    assert not list(shell.studies.glob("digits/trials/*/checkpoint.pt"))


ONE_THREAD = Slot(number=0, device="cpu", n_threads=1)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("run --data digits", 130),
        ("resume digits", 143),
        ("worker digits", 143),
        ("ensemble digits --seeds 2", 130),
    ],
)
def test_the_first_signal_ends_the_decoding_of_images(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    code: int,
) -> None:
    study = make_tiny_study(tmp_path, trials=1, epochs=1)
    if "ensemble" in words:
        run_trials(study.paths, ONE_THREAD, lambda: False, n_trials=1, deadline=None)
    shutil.rmtree(tmp_path / ".cache")

    def interrupted(*args: Any, **options: Any) -> ImageInput:
        os.kill(os.getpid(), code - 128)
        return decoding.choose_input(*args, **options)

    monkeypatch.setattr(store, "choose_input", interrupted)

    with pytest.raises(SystemExit) as left:
        main([*words.split(), "--studies", str(tmp_path)])

    assert left.value.code == code
    assert (
        "interrupted while decoding images; the same command decodes them"
        in capsys.readouterr().err
    )
    assert study.paths.database.is_file()


@pytest.mark.slow
def test_a_study_survives_ctrl_c_sigterm_and_killed_processes(shell: Shell) -> None:
    """One study after another fault: each start costs seconds, so they share it."""
    log = shell.studies / "digits" / "log.jsonl"

    # Ctrl-C in a terminal: the workers get the signal too.
    command = start_and_wait_for_reports(shell)
    os.killpg(command.process.pid, signal.SIGINT)
    assert_handed_back(command, code=130)

    # SIGTERM from a scheduler: the supervisor alone gets it.
    command = start_and_wait_for_reports(shell)
    command.process.send_signal(signal.SIGTERM)
    assert_handed_back(command, code=143)

    # The supervisor is killed: its workers hand back their trials and end by themselves.
    command = start_and_wait_for_reports(shell)
    workers = worker_pids(log)[-2:]
    command.process.kill()
    command.process.communicate()
    until(lambda: not any(is_alive(pid) for pid in workers), seconds=15)

    # A worker is killed: another takes its place, and the run itself goes on.
    command = start_and_wait_for_reports(shell, n_trials=N_TRIALS_AT_THE_END)
    n_workers = len(worker_pids(log))
    os.kill(worker_pids(log)[-1], signal.SIGKILL)
    ran = command.wait()

    assert ran.code == 0, ran.err
    assert len(worker_pids(log)) == n_workers + 1
    assert_whole(shell, n_trials=N_TRIALS_AT_THE_END)


# A worker that is killed as soon as it has saved 12 rounds, or when it decides about round 20.
WORK = """
import os, signal, sys
from pathlib import Path
from search import checkpoints
from search.devices import Slot
from search.loop import run_trials
from search.paths import StudyPaths
from search.rungs import RungPruner

def dying(function, is_time):
    def run(*arguments):
        if is_time(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return run

folder, moment = sys.argv[1:]
checkpoints.MIN_SECONDS_BETWEEN, checkpoints.MAX_SHARE_OF_TIME = 0.0, float("inf")
if moment == "training":
    save = checkpoints.save_checkpoint
    checkpoints.save_checkpoint = dying(save, lambda _, saved: len(saved.history) == 13)
else:
    RungPruner.prune = dying(RungPruner.prune, lambda *asked: asked[-1].last_step == 20)
slot = Slot(number=0, device="cpu", n_threads=1)
run_trials(StudyPaths(Path(folder)), slot, lambda: False, n_trials=3, deadline=None)
"""


@pytest.mark.slow
def test_a_trial_killed_between_rungs_and_at_one_equals_an_unbroken_one(tmp_path: Path) -> None:
    # The rungs of its 40 rounds are 10 and 20.
    unbroken, broken = (
        make_tiny_study(tmp_path / name, trials=3, epochs=40, pruner="rungs")
        for name in ("unbroken", "broken")
    )
    slot = Slot(number=0, device="cpu", n_threads=1)
    run_trials(unbroken.paths, slot, lambda: False, n_trials=3, deadline=None)

    for moment, n_reported in (("training", 13), ("deciding", 20)):
        command = [sys.executable, "-c", WORK, str(broken.paths.folder), moment]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert len(broken.trials()[0].intermediate_values) == n_reported
        assert broken.paths.trial(0).checkpoint.is_file()
        assert OrphanWatch(open_study(broken.paths)).hand_back(suspect=True) == [0]
    run_trials(broken.paths, slot, lambda: False, n_trials=3, deadline=None)

    one, two = (
        [
            (trial.state, trial.value, trial.params, trial.intermediate_values)
            for trial in study.trials()[:3]
        ]
        for study in (unbroken, broken)
    )
    assert one == two
    assert TrialState.PRUNED in {state for state, *_ in one}


@pytest.mark.slow
def test_ctrl_c_while_workers_are_being_started_is_answered_quietly(shell: Shell) -> None:
    command = shell.start("run", *LONGER, "--trials", "2")

    def imports_begin() -> bool:
        children = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children")
        words = [
            Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8")
            for child in children.read_text(encoding="utf-8").split()
        ]
        return any("forkserver" in each for each in words)

    command.wait_for(imports_begin)
    os.killpg(command.process.pid, signal.SIGINT)
    stopped = command.wait()
    ran = shell.run("resume", "digits")

    assert stopped.code == 130, stopped.err
    assert "Traceback" not in stopped.err
    assert ran.code == 0, ran.err
    assert_whole(shell, n_trials=2)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_what_is_finished_stays(shell: Shell) -> None:
    command = start_and_wait_for_reports(shell)
    command.wait_for(lambda: "COMPLETE" in read_states(command.database))
    finished = read_states(command.database).count("COMPLETE")
    workers = worker_pids(shell.studies / "digits" / "log.jsonl")

    os.killpg(command.process.pid, signal.SIGSTOP)  # so that the first one cannot be answered yet
    os.killpg(command.process.pid, signal.SIGINT)
    os.kill(command.process.pid, signal.SIGTERM)
    os.killpg(command.process.pid, signal.SIGCONT)
    stopped = command.wait()
    until(lambda: not any(is_alive(pid) for pid in workers), seconds=30)
    ran = shell.run("resume", "digits")

    assert stopped.code == 143
    assert stopped.out == ""
    assert "interrupted" not in stopped.err
    assert ran.code == 0, ran.err
    assert_whole(shell, n_trials=N_TRIALS)
    assert finished > 0


@pytest.mark.slow
def test_a_run_that_is_stopped_for_a_while_loses_nothing(shell: Shell) -> None:
    """Ctrl-Z and `fg`: no trial is out of time, no worker is taken for dead."""
    timeout = 15.0
    command = start_and_wait_for_reports(shell, more=("--trial-timeout", f"{timeout}s"))

    os.killpg(command.process.pid, signal.SIGSTOP)
    time.sleep(timeout + 1)
    os.killpg(command.process.pid, signal.SIGCONT)
    ran = command.wait()

    assert ran.code == 0, ran.err
    assert len(worker_pids(shell.studies / "digits" / "log.jsonl")) == 2
    assert_whole(shell, n_trials=N_TRIALS)


def test_the_first_signal_is_a_flag_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with watched_signals() as interruption:
        assert not interruption()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption()
        assert interruption.exit_code == 143

    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with watched_signals():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        (tmp_path / "survived").touch()
        os._exit(0)

    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 130
    assert not (tmp_path / "survived").exists()

"""Run trials of a study that another host has begun."""

import json as json_format
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.errors import NothingToDoError
from search.interruption import Interruption, until_interrupted, watched_signals
from search.paths import DEFAULT_STUDIES
from search.words import n_of


def main(
    name: str,
    /,
    *,
    storage: Annotated[str | None, Parameter(env_var="CONCERTINO_STORAGE")] = None,
    data: str | None = None,
    data_root: Path | None = None,
    download: Annotated[bool, Parameter(negative="")] = False,
    workers: int | None = None,
    devices: str | None = None,
    budget: str | None = None,
    wait: str | None = None,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Run trials of a study that another host has begun, until it has enough.

    The images must be those of the study, which is checked. SIGTERM and Ctrl-C hand running
    trials back to the other hosts.

    Args:
        name: Name of the study.
        storage: URL that the study was begun with; not needed where its folder is shared.
        data: Where the images are on this host; default: where they were on the first one.
        data_root: Where torchvision data sets lie.
        download: Download a torchvision data set that is not there.
        workers: Worker processes; default: one per GPU, or one per CPU core.
        devices: auto, cpu, or a list such as cuda:0,cuda:1.
        budget: Time for this host: 90s, 15m, 1h30m.
        wait: Time to wait for the study to be made: 90s, 15m.
        studies: Folder of studies; the study's own folder in it may be shared by all hosts.
        json: Print one JSON document on stdout.
    """
    from rich.console import Console  # noqa: PLC0415  # --help needs none of these

    from search.config import validate_config  # noqa: PLC0415
    from search.durations import parse_duration  # noqa: PLC0415
    from search.joining import JoinRequest, work_on_study  # noqa: PLC0415
    from search.live import LiveView  # noqa: PLC0415
    from search.running import Observer  # noqa: PLC0415

    said = {
        "name": name,
        "data": data,
        "data_root": data_root,
        "download": download or None,
        "workers": workers,
        "devices": devices,
        "budget": budget,
    }
    settings = validate_config(
        {key: value for key, value in said.items() if value is not None}, source="worker"
    )
    request = JoinRequest(
        name=name,
        studies=studies,
        storage=storage,
        settings=settings,
        wait_seconds=parse_duration(wait) if wait else 0.0,
    )
    progress = Console(stderr=True)
    with (
        watched_signals() as interruption,
        LiveView(console=progress) as view,
        _leaving_when_interrupted(interruption, name),
    ):
        observer = Observer(
            on_change=view.show,
            on_shortage=view.show_shortage,
            on_decode=until_interrupted(interruption, view.show_decoding, progress.print),
            stop_requested=interruption,
        )
        joined = work_on_study(request, observer)
    counts, n_trials = joined.study.counts(), joined.study.record.config.trials
    n_finished = sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in joined.ran)
    folder = str(joined.study.paths.folder.resolve())
    host = socket.gethostname()
    if json:
        document = {
            "schema": 1,
            "study": name,
            "host": host,
            "finished_here": n_finished,
            "finished": counts.finished,
            "trials": n_trials,
            "interrupted": joined.end.interrupted,
            "folder": folder,
            "own_folder": joined.has_own_folder,
        }
        print(json_format.dumps(document))
    else:
        print(
            f"study {name}: {n_of(counts.finished, n_trials)} trials finished, {n_finished} of "
            f"them here on {host}"
        )
    if joined.has_own_folder and n_finished:
        progress.print(
            f"their weights and predictions lie in {folder}/trials on this host; the ensemble "
            "can use them when they are copied into the study's folder on the host that builds "
            f"it: rsync -a {host}:{folder}/trials/ studies/{name}/trials/",
            highlight=False,
            soft_wrap=True,
        )
    return interruption.exit_code if joined.end.interrupted else 0


@contextmanager
def _leaving_when_interrupted(interruption: Interruption, name: str) -> Iterator[None]:
    """End with the signal's exit code where somebody stops the wait for a study."""
    try:
        yield
    except NothingToDoError:
        if not interruption():
            raise
        print(f"worker: interrupted; study {name!r} has not been made yet", file=sys.stderr)
        raise SystemExit(interruption.exit_code) from None

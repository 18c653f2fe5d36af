"""Go on with a study."""

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.errors import ConfigError
from search.paths import DEFAULT_STUDIES


def main(
    name: str | None = None,
    /,
    *,
    trials: str | None = None,
    budget: str | None = None,
    workers: int | None = None,
    devices: str | None = None,
    slots_per_device: str | None = None,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Go on with a study that was interrupted, or give it more trials.

    Args:
        name: Name of the study; default: the one that was worked on last.
        trials: Finished trials that the study shall have; +50 means 50 more than asked before.
        budget: Time for everything from now on: 90s, 15m, 1h30m.
        workers: Worker processes.
        devices: auto, cpu, or a list such as 0,1 or cuda:0,cuda:1 or GPU-7f31.
        slots_per_device: Workers on each GPU: a number, or auto.
        studies: Folder of studies.
        json: Print one JSON document on stdout instead of the report.
    """
    from search.config import validate_config  # noqa: PLC0415  # --help needs none of these
    from search.session import run_and_report  # noqa: PLC0415
    from search.study import load_study  # noqa: PLC0415

    study = load_study(name, studies=studies)
    said = {
        "name": study.name,
        "trials": _n_trials(trials, study.record.config.trials),
        "budget": budget,
        "workers": workers,
        "devices": devices,
        "slots_per_device": slots_per_device,
    }
    given = {key: value for key, value in said.items() if value is not None}
    return run_and_report(
        validate_config({**given, "name": study.name}, source="resume"),
        studies=studies,
        json=json,
    )


def _n_trials(text: str | None, before: int) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\+?[0-9]{1,18}", text):
        raise ConfigError(f"--trials: expected a number such as 150 or +50, got {text!r}.")
    return before + int(text) if text.startswith("+") else int(text)

"""Search, build the ensemble and report."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.config import StudyConfig, resolve_config
from search.paths import DEFAULT_STUDIES


def main(
    *,
    settings: Annotated[StudyConfig | None, Parameter(name="*")] = None,
    config: Annotated[Path | None, Parameter(name=["--config", "-c"])] = None,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Search, build the ensemble and report; the same command again goes on.

    Settings are looked up in this order: flag, environment (CONCERTINO_TRIALS and its like),
    TOML file, preset, default.

    Args:
        settings: What to search.
        config: TOML file with any of the settings; default: NAME.toml in the folder of studies.
        studies: Folder of studies.
        json: Print one JSON document on stdout instead of the report.
    """
    flags = settings.model_dump(exclude_unset=True) if settings else {}
    given = resolve_config(flags, file=config, studies=studies)
    from search.session import run_and_report  # noqa: PLC0415  # --help needs no Optuna

    return run_and_report(given, studies=studies, json=json)

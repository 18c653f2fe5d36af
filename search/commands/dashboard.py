"""Optuna's dashboard in the browser."""

import contextlib
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from search.paths import DEFAULT_STUDIES


def main(
    name: str | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8080,
    browser: bool = True,
    studies: Annotated[Path, Parameter(env_var="CONCERTINO_STUDIES")] = DEFAULT_STUDIES,
) -> None:
    """Serve Optuna's dashboard on a study until Ctrl-C; a search may run meanwhile.

    The dashboard has no login, and who reaches it can delete the study: leave it bound to
    127.0.0.1, and reach it from elsewhere through an SSH tunnel.

    Args:
        name: Name of the study; default: the one that was worked on last.
        host: Address to listen on.
        port: Port to listen on; 0: any that is free.
        browser: Open the page in a browser.
        studies: Folder of studies.
    """
    from search.dashboard import make_dashboard  # noqa: PLC0415  # --help needs no Optuna
    from search.database import look_into  # noqa: PLC0415
    from search.study import load_study  # noqa: PLC0415

    study = load_study(name, studies=studies)
    server = make_dashboard(study.paths, host=host, port=port)
    with look_into(study.paths) as (_, study_id):
        url = f"http://{host}:{server.server_port}/dashboard/studies/{study_id}"
    print(f"dashboard of study {study.name}: {url}  (Ctrl-C ends it)", flush=True)
    if browser:
        webbrowser.open(url)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()

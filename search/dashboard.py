"""Optuna's dashboard on one study, served from this process.

The stock command reads the whole study anew at every poll (7 s at 5,000 trials); with a cached
storage behind its WSGI application a poll costs 0.3 s. It has no login: it is bound to this
machine unless somebody asks otherwise.
"""

from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import get_storage
from optuna_dashboard import wsgi

from search.errors import ConfigError
from search.paths import StudyPaths
from search.storage import SQLiteStorage


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # their name
        """Say nothing of each request."""


def make_dashboard(paths: StudyPaths, *, host: str, port: int) -> WSGIServer:
    """Return a server of the dashboard; `serve_forever` runs it.

    Args:
        paths: Files of the study.
        host: Address to listen on.
        port: Port to listen on; 0: any that is free.

    Raises:
        ConfigError: The port is taken, or the address is not of this machine.
    """
    paths.artifacts.mkdir(exist_ok=True)
    application = wsgi(
        get_storage(SQLiteStorage(paths.database, paths.trial_lock)),
        artifact_store=FileSystemArtifactStore(paths.artifacts),
    )
    try:
        return make_server(
            host, port, application, server_class=_Server, handler_class=_QuietHandler
        )
    except OSError as error:
        raise ConfigError(
            f"--port: cannot listen on {host}:{port}: {error.strerror}; "
            "choose another with --port, or 0 for any that is free."
        ) from error

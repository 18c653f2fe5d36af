"""Optuna's dashboard on one study, served from this process.

The stock command reads the whole study anew at every poll (7 s at 5,000 trials); with a cached
storage behind its WSGI application a poll costs 0.3 s. It has no login: it is bound to this
machine unless somebody asks otherwise. Two of its buttons would leave a folder behind that no
command can read any more, and a search without its study: deleting and renaming are refused here,
as is whatever a page of another site sends. All else works: *Fail Trial*, notes, artifacts.
"""

import contextlib
import errno
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from http import HTTPStatus
from socketserver import ThreadingMixIn
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import WSGIApplication, WSGIEnvironment

from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import get_storage
from optuna_dashboard import wsgi

from search.errors import ConfigError
from search.paths import StudyPaths
from search.storage import open_storage
from search.wsgi_answers import StartResponse, answer_of

_WHOLE_STUDY = re.compile(r"/api/studies(/\d+(/rename)?)?/?")
# The page of a trial does not wrap a long attribute (a recipe, the reason of a failure): the whole
# page becomes as wide as its text. The tables of notes leave no space between columns.
_STYLE = b"""<style>
p.MuiTypography-root, td.MuiTableCell-root { white-space: normal; overflow-wrap: anywhere }
table:not([class]) th, table:not([class]) td { padding: 0.15em 0.8em }
</style>"""


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
    storage = get_storage(open_storage(paths))
    application = wsgi(storage, artifact_store=FileSystemArtifactStore(paths.artifacts))
    with contextlib.suppress(ImportError):  # of parts that a later dashboard names otherwise
        from search.dashboard_trials import with_quick_trials  # noqa: PLC0415

        application = with_quick_trials(application, storage)
    try:
        return make_server(
            host,
            port,
            _guarded(_wrapping(application)),
            server_class=_Server,
            handler_class=_QuietHandler,
        )
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            hint = "choose another with --port, or 0 for any that is free"
            raise ConfigError(
                f"--port: cannot listen on {host}:{port}: {error.strerror}; {hint}."
            ) from error
        raise ConfigError(
            f"--host: cannot listen on {host}: {error.strerror}; expected an address of this "
            "machine such as 127.0.0.1."
        ) from error


def _guarded(application: WSGIApplication) -> WSGIApplication:
    """Refuse to make, rename or delete studies, and to change anything for another site."""

    def respond(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        reason = _refusal(environ)
        if not reason:
            return application(environ, start_response)
        status = HTTPStatus.FORBIDDEN
        body = json.dumps({"reason": reason}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]

    return respond


def _refusal(environ: WSGIEnvironment) -> str:
    if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
        return ""
    origin = environ.get("HTTP_ORIGIN")
    if origin and urlsplit(origin).netloc != environ.get("HTTP_HOST"):
        return f"a page of {origin} may change nothing here."
    if _WHOLE_STUDY.fullmatch(environ.get("PATH_INFO", "")):
        return "a study is made by `python -m search run` and deleted with its folder."
    return ""


def _wrapping(application: WSGIApplication) -> WSGIApplication:
    """Add our style to the dashboard's one page."""

    def respond(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not environ.get("PATH_INFO", "").startswith("/dashboard"):
            return application(environ, start_response)
        environ.pop("HTTP_IF_MODIFIED_SINCE", None)
        answer = answer_of(application, environ)
        body = answer.body.replace(b"</head>", _STYLE + b"</head>")
        return replace(answer, body=body).send(start_response)

    return respond

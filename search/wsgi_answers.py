"""Answers of a WSGI application as values, which another may change before they are sent."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias
from wsgiref.types import WSGIApplication, WSGIEnvironment

# Not `wsgiref.types.StartResponse`, a protocol that cannot be checked in tests.
StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a WSGI application answers to one request."""

    status: str
    """Such as `200 OK`."""
    headers: list[tuple[str, str]]
    body: bytes

    def send(self, start_response: StartResponse) -> Iterable[bytes]:
        """Send the answer, with the length that its body has now."""
        kept = [header for header in self.headers if header[0].lower() != "content-length"]
        start_response(self.status, [*kept, ("Content-Length", str(len(self.body)))])
        return [self.body]


def answer_of(application: WSGIApplication, environ: WSGIEnvironment) -> Answer:
    """Return what an application answers to one request."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def note(
        status: str, headers: list[tuple[str, str]], _error: object = None, /
    ) -> Callable[[bytes], object]:
        started.append((status, headers))
        return lambda _: None

    parts = application(environ, note)
    body = b"".join(parts)
    if hasattr(parts, "close"):
        parts.close()  # as WSGI asks of whoever reads a response
    status, headers = started[0]
    return Answer(status=status, headers=headers, body=body)

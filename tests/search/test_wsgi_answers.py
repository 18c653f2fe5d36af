from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from search.wsgi_answers import Answer, answer_of


class _Parts:
    """A body in parts that notes whether it was closed, as a file would have to be."""

    def __init__(self) -> None:
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield b"one, "
        yield b"two"

    def close(self) -> None:
        self.is_closed = True


def test_an_answer_is_status_headers_and_all_parts_of_the_body() -> None:
    parts = _Parts()

    def application(environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
        start(f"200 {environ['PATH_INFO']}", [("X-Kind", "test")])
        return parts

    answer = answer_of(application, {"PATH_INFO": "/page"})

    assert answer == Answer(status="200 /page", headers=[("X-Kind", "test")], body=b"one, two")
    assert parts.is_closed


def test_a_body_without_a_close_will_do() -> None:
    def application(_: object, start: Callable[..., object]) -> Iterable[bytes]:
        start("204 No Content", [])
        return []

    assert answer_of(application, {}) == Answer(status="204 No Content", headers=[], body=b"")


def test_a_changed_body_is_sent_with_its_own_length() -> None:
    answer = Answer(
        status="200 OK",
        headers=[("content-length", "3"), ("Content-Type", "text/plain")],
        body=b"abc",
    )
    started: list[tuple[object, ...]] = []

    def start(*words: object) -> Callable[[bytes], object]:
        started.append(words)
        return lambda _: None

    body = replace(answer, body=b"abcdef").send(start)

    assert list(body) == [b"abcdef"]
    assert started == [("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])]

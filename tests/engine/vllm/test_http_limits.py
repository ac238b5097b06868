"""Claims about what one connection to the API server may send, over a server of uvicorn's."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.hostile.sending import Outcome, exchange, get, post

pytestmark = pytest.mark.vllm

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("httptools")

from nodeserve.engine.vllm.http_limits import HttpLimits, LimitedHttp  # noqa: E402

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Small(LimitedHttp):
    """Limits that a test reaches quickly."""

    limits = HttpLimits(
        head_bytes=4096, headers=20, body_bytes=8192, idle_s=0.2, head_s=0.2, body_s=0.2
    )


async def count_body(_scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer with the length of the body."""
    if _scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        size, more = size + len(event.get("body", b"")), event.get("more_body", False)
    if _scope["path"] == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"on", "more_body": True})
        await receive()
        return
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(path: Path, protocol: type[LimitedHttp]) -> Iterator[Path]:
    """Serve on a Unix socket until the block is left."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    config = uvicorn.Config(count_body, http=protocol, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        yield path
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving(tmp_path_factory.mktemp("http") / "s", Small) as path:
        yield path


def ask(path: Path, *pieces: bytes, pause_s: float = 0.0) -> Outcome:
    return exchange(path, pieces, pause_s=pause_s, patience_s=30.0)


def test_a_request_within_the_limits_is_answered(small):
    outcome = ask(small, post("/", b"x" * 8192, *(f"X-{n}: 1" for n in range(10))))
    assert (outcome.status, outcome.body) == (200, b"8192")


REFUSED = {
    "a long header": (get("/", "X-Big: " + "x" * 5000), 431),
    "many headers": (get("/", *(f"X-{n}: 1" for n in range(50))), 431),
    "a long target": (get("/" + "x" * 5000), 414),
    "a large body announced": (post("/", b"x", length=8193), 413),
    "a length of 10 GiB": (post("/", b"x", length=10 << 30), 413),
    "no HTTP": (b"\x16\x03\x01" * 20, 400),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_too_large_is_refused_and_the_connection_closed(small, case):
    sent, status = REFUSED[case]
    outcome = ask(small, sent)
    assert outcome.status == status
    assert b'"invalid_request_error"' in outcome.body
    assert dict(outcome.headers)["connection"] == "close"


def test_a_header_that_never_ends_is_refused_before_it_has_come(small):
    outcome = ask(small, b"GET / HTTP/1.1\r\nX-Big: ", *([b"x" * 1024] * 1000))
    assert outcome.status == 431


def test_a_chunked_body_is_refused_at_the_limit(small):
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    outcome = ask(small, head, *([b"1000\r\n" + b"x" * 4096 + b"\r\n"] * 10))
    assert outcome.status == 413


@pytest.mark.parametrize(
    "pieces",
    [
        [b"POST / HT"],
        [bytes([letter]) for letter in b"GET / HTTP/1.1\r\nX-A: slowly, slowly\r\n"],
        [post("/", b"", length=100)],
        [post("/", b"", length=100), *[b"x"] * 20],
    ],
    ids=["half a line", "a slow head", "no body", "a slow body"],
)
def test_what_takes_too_long_is_ended(small, pieces):
    assert ask(small, *pieces, pause_s=0.05).status == 408


def test_a_connection_that_says_nothing_is_closed(small):
    assert ask(small).status == 408


def test_requests_in_one_go_are_all_answered(small):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(small))
        client.sendall(get("/") * 50 + get("/", "Connection: close"))
        said = b""
        while data := client.recv(1 << 16):
            said += data
    assert said.count(b"HTTP/1.1 200") == 51


def receive_until(client: socket.socket, end: bytes) -> bytes:
    said = b""
    while not said.endswith(end) and (data := client.recv(1 << 16)):
        said += data
    return said


@pytest.mark.parametrize("case", REFUSED)
def test_a_later_request_of_a_connection_is_refused_in_the_same_words(small, case):
    request, status = REFUSED[case]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(small))
        client.sendall(get("/"))
        assert receive_until(client, b"\r\n\r\n0").startswith(b"HTTP/1.1 200 ")
        client.sendall(request)
        assert receive_until(client, b"}}").startswith(b"HTTP/1.1 %d " % status)


UNFINISHED = b"GET / HTTP/1.1\r\nX-Big: " + b"x" * 5000


@pytest.mark.parametrize("request_", [UNFINISHED, *(sent for sent, _ in REFUSED.values())])
def test_a_refusal_does_not_mix_with_the_answer_before_it(small, request_):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(small))
        client.sendall(get("/endless"))
        begun = receive_until(client, b"on\r\n")
        assert begun.count(b"HTTP/1.1 ") == 1
        client.sendall(request_)
        assert b"HTTP/1.1 " not in receive_until(client, b"}}")

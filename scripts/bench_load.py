"""A cheap HTTP load on a Unix socket: it shares the cores with what it measures."""

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Final, cast

COMPLETION_TOKENS: Final = re.compile(rb'"completion_tokens":\s*(\d+)')


@dataclass(frozen=True, slots=True)
class Load:
    """``streams`` clients, each asking for ``requests`` completions of ``tokens`` tokens."""

    streams: int
    tokens: int
    requests: int
    stream: bool


@dataclass(slots=True)
class Outcome:
    """What came back."""

    seconds: float = 0.0
    tokens: int = 0
    requests: int = 0
    errors: list[str] = field(default_factory=list)


class _Client(asyncio.Protocol):
    """One connection that sends a request as soon as the last one is answered."""

    def __init__(self, request: bytes, load: Load, outcome: Outcome) -> None:
        self._request = request
        self._load = load
        self._outcome = outcome
        self._left = load.requests
        self._tail = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is no subclass
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        # The end of a chunked answer is the empty chunk; what stands before it has the usage.
        self._tail = (self._tail + data)[-2048:] if self._load.stream else self._tail + data
        if self._load.stream:
            if self._tail.endswith(b"0\r\n\r\n"):
                self._finish()
        elif b"\r\n\r\n" in self._tail:
            head, _, body = self._tail.partition(b"\r\n\r\n")
            length = re.search(rb"content-length:\s*(\d+)", head, re.IGNORECASE)
            if length is not None and len(body) >= int(length[1]):
                self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._outcome.errors.append(f"connection lost: {exc}")
            self.done.set_result(None)

    def _finish(self) -> None:
        counts = COMPLETION_TOKENS.findall(self._tail)
        if counts:
            self._outcome.tokens += int(counts[-1])
            self._outcome.requests += 1
        else:
            self._outcome.errors.append(self._tail[-300:].decode(errors="replace"))
        self._tail = b""
        self._left -= 1
        if self._left and self._transport is not None:
            self._transport.write(self._request)
        elif not self.done.done():
            self.done.set_result(None)


def http_request(model: str, load: Load) -> bytes:
    """Return one completion request as bytes on the wire."""
    body: dict[str, object] = {
        "model": model,
        "prompt": "The quick brown fox jumps over the lazy dog.",
        "max_tokens": load.tokens,
        "ignore_eos": True,
        "stream": load.stream,
    }
    if load.stream:
        body["stream_options"] = {"include_usage": True}
    data = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def run_load(socket: str, model: str, load: Load, *, deadline_s: float = 120.0) -> Outcome:
    """Put ``load`` on the server at ``socket`` and return what came back, within a deadline."""
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    request = http_request(model, load)
    start_s = loop.time()
    async with asyncio.timeout(deadline_s):
        made = [
            await loop.create_unix_connection(lambda: _Client(request, load, outcome), socket)
            for _ in range(load.streams)
        ]
        await asyncio.gather(*(client.done for _, client in made))
    outcome.seconds = loop.time() - start_s
    for transport, _ in made:
        transport.close()
    return outcome

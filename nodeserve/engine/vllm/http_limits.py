"""What one connection to vLLM's Python API server may send: bounded in size and in time.

uvicorn has no limit for headers and bodies and no deadline for either: 64 MiB of header keep its
loop busy for half a minute, and half a request keeps its connection for ever.
"""

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The bounds of a request.

    Attributes:
        head_bytes: Of the request line and all headers.
        headers: How many there may be.
        body_bytes: Of the body.
        idle_s: How long a new connection may say nothing.
        head_s: How long a head may take from its first byte on.
        body_s: How long a body may take, beyond what its size allows.
        body_bytes_per_s: The rate below which a large body is too slow.
    """

    head_bytes: int = 64 << 10
    headers: int = 200
    body_bytes: int = 64 << 20
    idle_s: float = 60.0
    head_s: float = 10.0
    body_s: float = 30.0
    body_bytes_per_s: int = 16 << 10

    def __str__(self) -> str:
        return (
            f"a request has up to {self.headers} headers in {self.head_bytes >> 10} KiB, which"
            f" come within {self.head_s:g} s, and a body of up to {self.body_bytes >> 20} MiB"
        )


class RequestRefusedError(Exception):
    """A request was ended for its size; it never leaves the protocol."""


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which answers 431, 414, 413 and 408 and hangs up."""

    limits: ClassVar[HttpLimits] = HttpLimits()

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Take what uvicorn gives each connection's protocol."""
        super().__init__(*args, **kwargs)
        self._refusal = HTTPStatus.BAD_REQUEST
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._in_body = False
        self._num_bytes = 0
        self._began_s = 0.0

    # ------------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait(self.limits.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._wait(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; a head that does not end within its limit ends the connection."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._num_bytes += len(data)
            if self._num_bytes > self.limits.head_bytes:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    # ----------------------------------------------------------------- the parser's calls

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head, self._num_bytes, self._began_s = True, 0, self.loop.time()
        self._wait(self.limits.head_s)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header has come whole."""
        if len(value) > self.limits.head_bytes or len(self.headers) >= self.limits.headers:
            self._stop_parsing(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has come whole; its body is refused if it says that it is too large."""
        if len(self.url) > self.limits.head_bytes:
            self._stop_parsing(HTTPStatus.REQUEST_URI_TOO_LONG)
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        if int(length) > self.limits.body_bytes:  # the parser takes digits alone
            self._stop_parsing(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        super().on_headers_complete()
        self._in_head, self._in_body, self._num_bytes = False, True, 0
        self._began_s = self.loop.time()
        self._wait(self.limits.body_s)

    def on_body(self, body: bytes) -> None:
        """A piece of the body has come."""
        self._num_bytes += len(body)
        if self._num_bytes > self.limits.body_bytes:
            self._stop_parsing(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has come whole."""
        self._in_body = False
        self._wait(None)
        super().on_message_complete()

    # ----------------------------------------------------------------------- refusing

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be read in the shape of the API's other errors."""
        self._refuse(self._refusal, msg)

    def _stop_parsing(self, status: HTTPStatus) -> None:
        self._refusal = status
        raise RequestRefusedError(status.phrase)  # uvicorn asks for a 400 response then

    def _refuse(self, status: HTTPStatus, message: str | None = None) -> None:
        self._wait(None)
        if self._would_mix():
            self.transport.close()
            return
        text = message if status is HTTPStatus.BAD_REQUEST else f"{status.phrase}: {self.limits}"
        error = {"message": text, "type": "invalid_request_error", "param": None}
        body = json.dumps({"error": error | {"code": status.value}}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _would_mix(self) -> bool:
        """Whether an answer now would come in the middle of another one, or in its place."""
        if self.pipeline:
            return True
        if self.cycle is None:
            return False
        # Until a request's head is whole, the cycle is that of the request before it.
        return self.cycle.response_started if self._in_body else not self.cycle.response_complete

    # ---------------------------------------------------------------------- deadlines

    def _wait(self, delay_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay_s is None else self.loop.call_later(delay_s, self._late)

    def _late(self) -> None:
        if self.transport.is_closing():
            return
        paused = self.flow is not None and self.flow.read_paused
        earlier = not self._in_body and self.cycle and not self.cycle.response_complete
        if paused or earlier:
            self._wait(
                self.limits.head_s
            )  # it is we who do not read, or an earlier request's answer runs
            return
        if self._in_body:
            allowed_s = self.limits.body_s + self._num_bytes / self.limits.body_bytes_per_s
            left_s = self._began_s + allowed_s - self.loop.time()
            if left_s > 0:
                self._wait(left_s)
                return
        self._refuse(HTTPStatus.REQUEST_TIMEOUT)

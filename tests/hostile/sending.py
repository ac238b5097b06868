"""A client that says to a gateway whatever it likes, byte by byte, and sees how that ends."""

import json
import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PATIENCE_S: Final = 60.0
"""How long a gateway may take over a whole request before it counts as one that waits."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        status: The answer's HTTP status; None where there was none.
        closed: Whether the gateway closed the connection.
        body: What followed the answer's head.
        headers: The answer's, by their lower-case names.
    """

    status: int | None
    closed: bool
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if self.status is not None:
            return str(self.status)
        return "closed" if self.closed else "waits"


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a request with a JSON body; its length may lie."""
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: node", "Content-Type: application/json"]
    lines += [f"Content-Length: {size}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(target: str, *headers: str, method: str = "GET") -> bytes:
    """Return a request without a body."""
    return (
        "\r\n".join([f"{method} {target} HTTP/1.1", "Host: node", *headers]).encode() + b"\r\n\r\n"
    )


def exchange(
    path: Path, pieces: Iterable[bytes], *, pause_s: float = 0.0, patience_s: float = PATIENCE_S
) -> Outcome:
    """Send the pieces and return what comes back, or that nothing does."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        try:
            for piece in pieces:
                client.sendall(piece)
                if pause_s:
                    select.select([client], [], [], pause_s)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have answered before it hung up
        return _read(client, patience_s)


def _read(client: socket.socket, patience_s: float) -> Outcome:
    said = bytearray()
    until_s = time.monotonic() + patience_s
    closed = False
    while not _is_whole(said) and (left_s := until_s - time.monotonic()) > 0:
        client.settimeout(left_s)
        try:
            data = client.recv(1 << 16)
        except TimeoutError:
            break
        except ConnectionResetError:
            data = b""
        if not data:
            closed = True
            break
        said += data
    return _outcome(bytes(said), closed=closed)


def _is_whole(said: bytearray) -> bool:
    head, found, body = bytes(said).partition(b"\r\n\r\n")
    if not found:
        return False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return len(body) >= int(value)
    return body.endswith(b"0\r\n\r\n")


def _outcome(said: bytes, *, closed: bool) -> Outcome:
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split()
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        return Outcome(None, closed, said)
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
    return Outcome(int(words[1]), closed, body, headers)


def asked(body: Any, path: str = "/v1/completions") -> bytes:
    """Return a whole request with a JSON body made of a value."""
    return post(path, json.dumps(body).encode())

"""Ask a gateway over HTTP whether it serves: a process can be up and useless."""

import asyncio
import contextlib
import enum
import errno
from dataclasses import dataclass
from typing import Final

_REQUEST: Final = b"GET /health HTTP/1.1\r\nHost: nodeserve\r\nConnection: close\r\n\r\n"
_MAX_STATUS_BYTES: Final = 1024
_STATUS_LINE_PARTS: Final = 2
_OK: Final = b"200"
_NO_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Health(enum.StrEnum):
    """What a probe found."""

    SERVING = "serving"
    REFUSING = "refusing"
    SILENT = "silent"
    UNREACHABLE = "unreachable"
    UNASKED = "unasked"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe's finding; ``detail`` is one sentence for people.

    ``SERVING`` is an answer with status 200, ``REFUSING`` any other answer, ``SILENT`` a
    connection without an answer in time (a gateway that waits for its engine, or hangs),
    ``UNREACHABLE`` no connection, and ``UNASKED`` that we had no file left to ask it with.
    """

    health: Health
    detail: str

    @property
    def serving(self) -> bool:
        """Whether the gateway answers requests."""
        return self.health is Health.SERVING


async def probe_unix(path: str, *, deadline_s: float) -> ProbeResult:
    """Probe the gateway that listens on the Unix socket ``path``. Never raises."""
    return await _probe(path, None, deadline_s)


async def probe_tcp(host: str, port: int, *, deadline_s: float) -> ProbeResult:
    """Probe the gateway that listens on ``host`` and ``port``. Never raises."""
    return await _probe(host, port, deadline_s)


async def _probe(where: str, port: int | None, deadline_s: float) -> ProbeResult:
    place = where if port is None else f"{where}:{port}"
    connected = False
    try:
        async with asyncio.timeout(deadline_s):
            if port is None:
                reader, writer = await asyncio.open_unix_connection(where, limit=_MAX_STATUS_BYTES)
            else:
                reader, writer = await asyncio.open_connection(where, port, limit=_MAX_STATUS_BYTES)
            connected = True
            with contextlib.closing(writer):
                writer.write(_REQUEST)
                line = await reader.readline()
    except TimeoutError:
        health = Health.SILENT if connected else Health.UNREACHABLE
        return ProbeResult(health, f"GET /health on {place}: no answer in {deadline_s:g} s")
    except (OSError, ValueError) as error:
        health = Health.SILENT if connected else Health.UNREACHABLE
        if isinstance(error, OSError) and error.errno in _NO_FILES:
            health = Health.UNASKED
        return ProbeResult(health, f"GET /health on {place}: {error}")
    return _judge(place, line)


def _judge(place: str, line: bytes) -> ProbeResult:
    if not line:
        return ProbeResult(Health.SILENT, f"GET /health on {place}: closed without an answer")
    parts = line.split()
    if len(parts) < _STATUS_LINE_PARTS or not parts[0].startswith(b"HTTP/"):
        text = line[:80].decode("ascii", "replace").strip()
        return ProbeResult(Health.REFUSING, f"GET /health on {place}: not HTTP but {text!r}")
    if parts[1] != _OK:
        status = parts[1].decode("ascii", "replace")
        return ProbeResult(Health.REFUSING, f"GET /health on {place}: status {status}")
    return ProbeResult(Health.SERVING, f"GET /health on {place}: status 200")

"""Log records as entries of systemd's journal, each field of a line one that can be asked for.

``journalctl NODESERVE_EVENT=process_exited NODESERVE_NAME=decode-0`` finds what a line
``process_exited name=decode-0 ...`` says.
"""

import logging
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")

PRIORITIES: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
"""Of syslog(3), by which the journal sorts. Source: sd-daemon(3)."""

_EVENT: Final = re.compile(r"[a-z][a-z0-9_]*(?= |$)")
_FIELD: Final = re.compile(r"""(?<= )([a-z][a-z0-9_]{0,50})=('[^']*'|"[^"]*"|[^\s:]+)""")


class JournalHandler(logging.Handler):
    """Sends records to the journal; one that it does not take goes to ``otherwise``."""

    def __init__(self, path: Path, otherwise: logging.Handler) -> None:
        super().__init__()
        self._path = str(path)
        self._otherwise = otherwise

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; blocks no longer than the kernel takes to copy it."""
        entry = encode(self.format(record), PRIORITIES.get(record.levelname, 6))
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as channel:
                channel.sendto(entry, self._path)
        except OSError:  # too large for a datagram, or nobody listens
            self._otherwise.emit(record)


def encode(text: str, priority: int) -> bytes:
    """Return an entry in the journal's native protocol.

    Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. A value with line breaks is sent behind its
    length, 64 bits little-endian, so that what a client chose cannot begin another field.
    """
    fields = [("MESSAGE", text), ("PRIORITY", str(priority)), ("SYSLOG_IDENTIFIER", "nodeserve")]
    return b"".join(_field(name, value) for name, value in (*fields, *_fields_of(text)))


def _fields_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield the event's name and its ``key=value`` fields, which stand on the first line."""
    line = text.partition("\n")[0]
    event = _EVENT.match(line)
    if event is None:
        return
    yield "NODESERVE_EVENT", event[0]
    for found in _FIELD.finditer(line):
        yield f"NODESERVE_{found[1].upper()}", found[2].strip("'\"")


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"

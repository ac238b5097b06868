"""The kernel's messages as they come: from ``/dev/kmsg`` where that may be read, else the journal.

Neither needs root: the journal is read by members of the group ``systemd-journal``. Nobody but the
kernel can write what is taken here for its own.
"""

import contextlib
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from nodeserve.device.base import XidSeen
from nodeserve.device.kernel_log import SwitchError, parse_message
from nodeserve.device.parent_death import die_with_parent

_LOG: Final = logging.getLogger(__name__)

KMSG: Final = Path("/dev/kmsg")
JOURNALCTL: Final = "journalctl"

_RECORD_BYTES: Final = 8192
"""As much as one record can have, so that one read takes it whole."""

_CHUNK_BYTES: Final = 1 << 16
_MAX_LINE_BYTES: Final = 1 << 20
_MAX_RECORDS: Final = 2000
"""Taken at a time; the rest comes at the next call."""

"""Source: linux/prctl.h."""


Error = XidSeen | SwitchError


class KernelLog(Protocol):
    """Where the kernel's messages come from."""

    def fileno(self) -> int:
        """Return what is readable when there may be something to take."""
        ...

    def take(self) -> list[Error]:
        """Return the errors that were told of since the last call, without waiting.

        Raises:
            OSError: No more will come.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Kmsg:
    """``/dev/kmsg``, or another fd that gives one of its records at each read."""

    def __init__(self, fd: int, since_s: float) -> None:
        """Own ``fd``, which does not block; take what is not older than ``since_s``."""
        self._fd = fd
        self._since_s = since_s

    def fileno(self) -> int:
        """Return the fd."""
        return self._fd

    def take(self) -> list[Error]:
        """Read until nothing is left."""
        found: list[Error] = []
        for _ in range(_MAX_RECORDS):
            try:
                record = os.read(self._fd, _RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # what was next has been overwritten; the kernel goes on behind it
            if not record and not found:
                raise OSError("the kernel's messages have ended")
            if not record:
                break
            error = parse_record(record)
            if error is not None and (error.at_s or 0.0) >= self._since_s:
                found.append(error)
        return found

    def close(self) -> None:
        """Close the fd."""
        os.close(self._fd)


class Journal:
    """``journalctl``, as a child that ends with this process."""

    def __init__(self, command: Sequence[str], since_s: float) -> None:
        """Start it; raises OSError where it cannot be."""
        self._since_s = since_s
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,  # noqa: PLW1509  (the monitor has no other Python thread)
        )
        if self._child.stdout is None:
            raise OSError(f"{command[0]} has no output")
        self._fd = self._child.stdout.fileno()
        os.set_blocking(self._fd, False)
        self._rest = b""

    def fileno(self) -> int:
        """Return its end of the pipe."""
        return self._fd

    def take(self) -> list[Error]:
        """Read until nothing is left, a line for each message."""
        found: list[Error] = []
        while True:
            try:
                chunk = os.read(self._fd, _CHUNK_BYTES)
            except BlockingIOError:
                return found
            if not chunk and not found:
                raise OSError(
                    f"journalctl has ended with {self._child.poll()}; see whether this user is in "
                    "the group systemd-journal"
                )
            if not chunk:
                return found  # the end is there to be seen at the next call
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._rest = self._rest[-_MAX_LINE_BYTES:]
            for line in lines:
                error = parse_journal_line(line)
                if error is not None and (error.at_s or 0.0) >= self._since_s:
                    found.append(error)

    def close(self) -> None:
        """End the child."""
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()


def open_kernel_log(
    since_s: float, since_unix_s: float, *, kmsg: Path = KMSG, journalctl: str = JOURNALCTL
) -> KernelLog | None:
    """Return the kernel's messages from ``since_s`` on; None where they cannot be read.

    ``since_unix_s`` is the same time on the wall clock, or a little before.
    """
    try:
        return Kmsg(os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), since_s)
    except OSError as error:
        refusal = error.strerror
    if shutil.which(journalctl) is None:
        _LOG.warning("kernel_log_not_had kmsg=%r journal='no journalctl'", refusal)
        return None
    return Journal(journal_command(since_unix_s, journalctl), since_s)


def journal_command(since_unix_s: float, journalctl: str = JOURNALCTL) -> list[str]:
    """Return the command that writes the kernel's messages of this boot as JSON, and goes on."""
    return [
        journalctl,
        "--dmesg",
        "--follow",
        "--lines=all",
        f"--since=@{int(since_unix_s)}",
        "--output=json",
        "--output-fields=MESSAGE,SYSLOG_FACILITY,_TRANSPORT",
        "--quiet",
        "--no-pager",
    ]


def parse_record(record: bytes) -> Error | None:
    r"""Return the error that a record of ``/dev/kmsg`` tells of.

    It is ``priority,number,us,flags;message``, then lines of other fields; bytes that are not
    printable stand as ``\x0a``. Source: Documentation/ABI/testing/dev-kmsg. Who writes to the file
    cannot have facility 0, which is the kernel's.
    """
    head, _, rest = record.partition(b";")
    try:
        priority, _, time_us = head.split(b",")[:3]
        facility, at_s = int(priority) >> 3, int(time_us) / 1e6
    except ValueError:
        return None
    if facility:
        return None
    message = rest.partition(b"\n")[0].replace(rb"\x0a", b"\n")
    return parse_message(message.decode(errors="replace"), at_s)


class _Entry(msgspec.Struct):
    """An entry of the journal: a message is a list of bytes where it is not text."""

    message: str | list[int] | None = msgspec.field(name="MESSAGE", default=None)
    transport: str | None = msgspec.field(name="_TRANSPORT", default=None)
    facility: str | None = msgspec.field(name="SYSLOG_FACILITY", default=None)
    time_us: str = msgspec.field(name="__MONOTONIC_TIMESTAMP", default="0")


_decode_entry: Final = msgspec.json.Decoder(_Entry).decode


def parse_journal_line(line: bytes) -> Error | None:
    """Return the error that a line of ``journalctl --output=json`` tells of."""
    if b"NVRM" not in line and b"SXid" not in line and b"[" not in line:
        return None
    try:
        entry = _decode_entry(line)
        message = entry.message
        if isinstance(message, list):
            message = bytes(message).decode(errors="replace")
        at_s = int(entry.time_us) / 1e6
    except (msgspec.MsgspecError, ValueError):
        return None
    # What a program has written into /dev/kmsg has the transport, but never the facility.
    if entry.transport != "kernel" or entry.facility != "0" or message is None:
        return None
    return parse_message(message, at_s)

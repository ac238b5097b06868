"""The service manager's protocol, sd_notify(3), in the standard library.

One datagram of ``NAME=value`` lines goes to the socket that ``NOTIFY_SOCKET`` names. Without a
manager nothing is sent. Nothing here blocks, and a manager that does not take a message is no
error: the daemon serves with or without it.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

_US_PER_S: Final = 1_000_000

PRIVATE_VARIABLES: Final = frozenset(
    {
        "CREDENTIALS_DIRECTORY",
        "FDSTORE",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_PRESSURE_WRITE",
        "NOTIFY_SOCKET",
        "SYSTEMD_EXEC_PID",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    }
)
"""What a manager tells the daemon and means for no other process. Source: systemd.exec(5)."""


class Notifier:
    """Says to the service manager how the daemon stands.

    Attributes:
        watchdog_s: How long the manager waits for ``alive`` before it kills; None where it does
            not watch.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        """Read whether there is a manager, and whether it watches the process ``pid``.

        The variables stay where they are: a daemon that executes itself anew needs them again.
        """
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        is_ours = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        microseconds = environ.get("WATCHDOG_USEC", "")
        watched = is_ours and microseconds.isdigit() and int(microseconds) > 0
        self.watchdog_s = int(microseconds) / _US_PER_S if watched else None

    @property
    def has_manager(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Say that the start, or a reload, is over."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Show one line in ``systemctl status``."""
        self._send(_status(status))

    def reloading(self) -> None:
        """Say that a reload begins; ``ready`` ends it.

        The time in the same datagram tells the manager which reload is meant.
        """
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self, status: str) -> None:
        """Say that the daemon ends."""
        self._send("STOPPING=1", _status(status))

    def alive(self) -> None:
        """Put the watchdog off by ``watchdog_s``."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for so much more time to start or stop, counted from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * _US_PER_S)}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as channel:
            channel.sendto("\n".join(lines).encode(), self._address)


def notifier_of_this_process() -> Notifier:
    """Return the notifier for the manager that started this process, if one did."""
    return Notifier(os.environ, os.getpid())


def _status(text: str) -> str:
    """Return the line for ``text``; a line break in it would begin another assignment."""
    return "STATUS=" + " ".join(text.split())

"""Whether the process that exported memory still runs. Process ids are reused; pidfds are not."""

import os
import select
from pathlib import Path
from typing import Final

from nodeserve.errors import PeerError

_STARTED: Final = 19
"""Of the fields of /proc/PID/stat behind the program's name, when the process started, in ticks
since boot. Source: proc(5), field 22."""


def started_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot.

    Raises:
        OSError: There is none.
    """
    line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    # The name in brackets may hold spaces and brackets of its own.
    return int(line.rpartition(")")[2].split()[_STARTED])


class Owner:
    """Another process, watched by a pidfd: a zombie counts as ended."""

    def __init__(self, pid: int, started: int) -> None:
        """Watch the process of that id that started at that tick.

        Raises:
            PeerError: It has ended.
        """
        self.pid = pid
        self.fd = -1
        try:
            self.fd = os.pidfd_open(pid)
            found = started_ticks(pid)
        except OSError as error:
            self.close()
            text = f"process {pid} has ended ({error}); the prompt is computed here"
            raise PeerError(text) from error
        if found != started or not self.is_alive():
            self.close()
            text = (
                f"process {pid} has ended, or is another one by now (started at tick {found}, not "
                f"{started}); the prompt is computed here"
            )
            raise PeerError(text)

    def is_alive(self) -> bool:
        """Return whether it runs."""
        if self.fd < 0:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Stop watching."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

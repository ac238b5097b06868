"""What /proc shows of a process and its descendants."""

import contextlib
import os
from pathlib import Path
from typing import Final

from nodeserve.lifecycle.liveness import Sight

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_STAT_BYTES: Final = 1024
_STOPPED: Final = frozenset("Tt")
_HELD: Final = "D"
_RUNNABLE: Final = "R"
_ENDED: Final = frozenset("ZXx")

# Fields behind the command's closing parenthesis. Source: proc_pid_stat(5).
_STATE: Final = 0
_USER_TICKS: Final = 11
_SYSTEM_TICKS: Final = 12

MAX_DESCENDANTS: Final = 64
"""More than the ranks of any engine; a worker that forks without end must not slow the watch."""


class ProcessView:
    """One process and those below it, by files that stay open: a tenth of the cost of opening.

    An open file stays that of the very process, whoever gets its pid later.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stats: dict[int, int] = {}
        self._open(pid)

    def close(self) -> None:
        """Close the files."""
        for fd in self._stats.values():
            os.close(fd)
        self._stats.clear()

    def look(self, *, closely: bool = False) -> Sight:
        """Return what the kernel shows; of who is gone, nothing.

        Args:
            closely: Look at every thread, to see whether any of them runs or wants to.
        """
        states = []
        cpu_ticks = 0
        for pid, fd in self._stats.items():
            with contextlib.suppress(OSError, IndexError):
                fields = _fields(os.pread(fd, _STAT_BYTES, 0))
                if fields[_STATE] not in _ENDED:
                    states.append(fields[_STATE])
                cpu_ticks += int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
                if closely:
                    states += _thread_states(pid)
        return Sight(
            is_stopped=not _STOPPED.isdisjoint(states),
            is_held=_HELD in states,
            is_runnable=_RUNNABLE in states,
            cpu_s=cpu_ticks / _TICKS_PER_S,
        )

    def find_descendants(self) -> None:
        """Look at the processes below this one too, as far as main threads have started them."""
        found = _descendants_of(self._pid)
        for pid in self._stats.keys() - found - {self._pid}:
            os.close(self._stats.pop(pid))
        for pid in found - self._stats.keys():
            self._open(pid)

    def _open(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            self._stats[pid] = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)


def _descendants_of(pid: int) -> set[int]:
    found: set[int] = set()
    left = [pid]
    while left and len(found) < MAX_DESCENDANTS:
        parent = left.pop()
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{parent}/task/{parent}/children").read_bytes()
            children = [int(word) for word in text.split()]
            found.update(children)
            left += children
    return found


def _thread_states(pid: int) -> list[str]:
    states = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError, IndexError):
            states.append(_fields((thread / "stat").read_bytes())[_STATE])
    return states


def _fields(stat: bytes) -> list[str]:
    return stat.rpartition(b")")[2].decode().split()

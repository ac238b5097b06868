"""A control group for each process of the node, where the service manager lets us make them."""

import contextlib
import os
from pathlib import Path
from typing import Final

from nodeserve.ids import Generation

OWN_NAME: Final = "supervisor"
"""Where the supervisor itself lives: a group with others below it may hold no process."""

_DELEGATED: Final = ("user.delegate", "trusted.delegate")
"""What systemd marks a group with that it leaves to its service. Source: systemd's
CGROUP_DELEGATION."""

_CONTROLLERS: Final = "+memory +pids"


class ControlGroup:
    """One process's group: whatever it starts, ``setsid`` or not, is in it too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, pid: int) -> None:
        """Put a process in; its children will be in it as well."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def kill(self) -> None:
        """Kill everybody in it."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")

    def is_empty(self) -> bool:
        """Whether no process is left."""
        return _count(self.path / "cgroup.events", "populated") in (0, None)

    def ran_out_of_memory(self) -> bool | None:
        """Whether the kernel killed one of them for its memory; None where it does not count."""
        kills = _count(self.path / "memory.events", "oom_kill")
        return None if kills is None else kills > 0

    def remove(self) -> None:
        """Remove it; one that is not empty stays."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


class ControlGroups:
    """The groups below one that is ours."""

    def __init__(self, top: Path) -> None:
        """Move into a group of our own, if need be, and remove what an earlier daemon left.

        Raises:
            OSError: The group is not ours after all.
        """
        self._top = top
        own = top / OWN_NAME
        own.mkdir(exist_ok=True)
        ControlGroup(own).add(os.getpid())
        with contextlib.suppress(OSError):  # then the cause of a death is less certain
            (top / "cgroup.subtree_control").write_text(_CONTROLLERS)
        for left in top.iterdir():
            if left.is_dir() and left != own:
                ControlGroup(left).remove()

    def make(self, name: str, generation: Generation) -> ControlGroup:
        """Return the group of a process; it exists afterwards.

        Raises:
            OSError: The kernel has no more of them.
        """
        group = ControlGroup(self._top / f"{name}-{generation}")
        group.path.mkdir(exist_ok=True)
        return group


def delegated_groups() -> ControlGroups | None:
    """Return the groups that the service manager left to us; None where it left none."""
    own = _own_group(Path("/proc/self/mountinfo"), Path("/proc/self/cgroup"))
    if own is None:
        return None
    for top in (own, own.parent):
        if _is_delegated(top):
            try:
                return ControlGroups(top)
            except OSError:
                return None
    return None


def _own_group(mountinfo: Path, cgroup: Path) -> Path | None:
    with contextlib.suppress(OSError):
        mounts = (line.split() for line in mountinfo.read_text().splitlines())
        points = [fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
        paths = [line[4:] for line in cgroup.read_text().splitlines() if line.startswith("0::/")]
        if points and paths:
            return Path(points[0]) / paths[0]
    return None


def _is_delegated(group: Path) -> bool:
    for mark in _DELEGATED:
        with contextlib.suppress(OSError):
            return os.getxattr(group, mark) == b"1"
    return False


def _count(path: Path, key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == key:
                return int(number)
    return None

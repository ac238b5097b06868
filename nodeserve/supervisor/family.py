"""A child of the supervisor and all that it has started."""

import contextlib
import os
import signal

from nodeserve.supervisor.cgroup import ControlGroup


class Family:
    """Known by the child's process group, and by its control group where it has one.

    Without a control group, who has left for a session of its own is no longer seen as one of
    them.
    """

    def __init__(self, leader: int, group: ControlGroup | None) -> None:
        self._leader = leader
        self._group = group

    def kill(self) -> None:
        """Kill all of them. Call it before the leader is reaped, or its number may be another's."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._leader, signal.SIGKILL)
        if self._group is not None:
            self._group.kill()

    def is_gone(self) -> bool:
        """Whether nobody is left: what they used is free again."""
        if self._group is not None:
            return self._group.is_empty()
        try:
            os.killpg(self._leader, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's by now
            return True
        return False

    def ran_out_of_memory(self) -> bool | None:
        """Whether the kernel killed one of them for its memory; None where it cannot be known."""
        return None if self._group is None else self._group.ran_out_of_memory()

    def forget(self) -> None:
        """Remove what they leave behind."""
        if self._group is not None:
            self._group.remove()

"""How the node stands, told to the service manager from the supervisor's own loop."""

from typing import Final

from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor.notify import Notifier
from nodeserve.wire.kinds import ProcessKind

STOP_EXTENSION_S: Final = 20.0
"""How much longer the manager waits for a node that drains, each time it is asked; the node's
own deadlines end the drain."""


class Standing:
    """Says ready once, the status when it changes, and alive while the loop turns.

    The daemon is ready when it holds its sockets and takes commands: clients may connect from
    then on and wait while engines load, which may take minutes and is under the watchdog too.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._told: str | None = None
        self._stopping = False
        self._is_reloading = False
        self._alive_at_s: float | None = None
        self._extend_at_s: float | None = None

    @property
    def wake_at_s(self) -> float | None:
        """When the loop must turn again, whatever happens; None when nobody watches."""
        times = [at_s for at_s in (self._alive_at_s, self._extend_at_s) if at_s is not None]
        return min(times, default=None)

    def reloading(self) -> None:
        """Say that the node's settings or its program change, until ``reloaded``."""
        self._notifier.reloading()
        self._is_reloading = True

    def reloaded(self) -> None:
        """Say ready in the next turn if a reload was under way."""
        if self._is_reloading:
            self._is_reloading = False
            self._told = None

    def turned(self, life: NodeLife, *, now_s: float, listening: bool) -> None:
        """Take note that the loop has turned once.

        ``listening`` says whether the other loop, which hears the node's processes and its
        operator, runs. Without it the supervisor is as good as hung, and says nothing.
        """
        if not self._notifier.has_manager or not listening:
            return
        if not self._is_reloading:
            self._say(standing_line(life), stopping=life.phase in _ENDING)
        if self._notifier.watchdog_s is not None and _due(self._alive_at_s, now_s):
            self._notifier.alive()
            self._alive_at_s = now_s + self._notifier.watchdog_s / 2
        if self._stopping and _due(self._extend_at_s, now_s):
            self._notifier.extend(STOP_EXTENSION_S)
            self._extend_at_s = now_s + STOP_EXTENSION_S / 2

    def leaving(self) -> None:
        """Give the program that takes over all of the watchdog's time to say that it is alive."""
        if self._notifier.watchdog_s is not None:
            self._notifier.alive()

    def ended(self, reason: str | None) -> None:
        """Leave why the daemon ends, which ``systemctl status`` goes on to show."""
        if reason is not None:
            self._notifier.status(reason.partition("\n")[0])

    def _say(self, line: str, *, stopping: bool) -> None:
        if stopping and not self._stopping:
            self._stopping = True
            self._notifier.stopping(line)
        elif self._told is None:
            self._notifier.ready(line)
        elif line != self._told:
            self._notifier.status(line)
        self._told = line


_ENDING: Final = (NodePhase.DRAINING, NodePhase.STOPPING)


def standing_line(life: NodeLife) -> str:
    """Return in one line what the node is doing, and what is missing."""
    slots = list(life.slots.values())
    left = [slot for slot in slots if slot.running]
    match life.phase:
        case NodePhase.STARTING:
            ready = sum(slot.life.phase is Phase.READY for slot in slots)
            doing = next((f"; {s.name}: {s.detail}" for s in left if s.detail), "")
            return f"starting: {ready} of {len(slots)} processes are ready{doing}"
        case NodePhase.READY:
            workers = [slot for slot in slots if slot.kind is ProcessKind.WORKER]
            able = sum(slot.serves for slot in workers)
            line = f"{life.state}: {able} of {len(workers)} workers serve"
            return f"{line}; {life.detail}" if life.detail else line
        case NodePhase.DRAINING:
            return "draining: requests in flight are being finished"
        case NodePhase.STOPPING:
            return f"stopping: {len(left)} processes are left"


def _due(at_s: float | None, now_s: float) -> bool:
    return at_s is None or at_s <= now_s

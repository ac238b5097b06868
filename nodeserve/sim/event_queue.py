"""Virtual time: what is to happen, in the order in which it happens."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Scheduled:
    """Something that is to happen, unless it is cancelled."""

    __slots__ = ("action",)

    def __init__(self, action: Action) -> None:
        self.action: Action | None = action

    def cancel(self) -> None:
        """Make it not happen. Harmless when it has."""
        self.action = None


class EventQueue:
    """What is to happen, by time and then by the order in which it was scheduled.

    It is the clock of all that is simulated: it stands still while something happens.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._heap: list[tuple[float, int, Scheduled]] = []
        self._num_scheduled = 0

    def now_s(self) -> float:
        """Return the virtual time."""
        return self._now_s

    def after(self, delay_s: float, action: Action) -> Scheduled:
        """Let something happen after a while."""
        return self.at(self._now_s + delay_s, action)

    def at(self, at_s: float, action: Action) -> Scheduled:
        """Let something happen at a time; one that has passed means next."""
        scheduled = Scheduled(action)
        self._num_scheduled += 1
        heapq.heappush(self._heap, (at_s, self._num_scheduled, scheduled))
        return scheduled

    def leap(self, by_s: float) -> None:
        """Let the clock jump: what was due meanwhile happens now, late and in order."""
        self._now_s += by_s

    def run_next(self) -> bool:
        """Let the next thing happen; False when nothing is to come."""
        heap = self._heap
        while heap:
            at_s, _, scheduled = heapq.heappop(heap)
            action = scheduled.action
            if action is not None:
                self._now_s = max(self._now_s, at_s)
                action()
                return True
        return False

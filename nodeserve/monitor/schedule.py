"""When devices are read and meters are told of; pure.

All deadlines are absolute, so that a late one does not put off the next; what was missed is not
made up for.
"""

import math
from typing import Final

TICK_S: Final = 0.1
TICKS_PER_READING: Final = 10
HOUR_S: Final = 3600.0


class Schedule:
    """Ticks ten times a second; readings each second, and when an hour of UTC is full."""

    def __init__(self, now_s: float, unix_s: float) -> None:
        self._next_tick_s = now_s
        self._tick = -1  # the first one is a reading
        self._hour = _hour(unix_s)

    @property
    def tick(self) -> int:
        """How many ticks have been due so far."""
        return self._tick

    def wait_s(self, now_s: float, unix_s: float) -> float:
        """Return how long there is nothing to do."""
        to_hour_s = (self._hour + 1) * HOUR_S - unix_s
        return max(0.0, min(self._next_tick_s - now_s, to_hour_s))

    def take(self, now_s: float, unix_s: float) -> tuple[bool, bool]:
        """Return whether devices are to be read now, and whether that ends their windows."""
        hour = _hour(unix_s)
        is_full_hour = hour > self._hour
        self._hour = hour  # also backwards: the wall clock may be set
        if now_s < self._next_tick_s:
            return is_full_hour, is_full_hour
        missed = int((now_s - self._next_tick_s) / TICK_S)
        before = self._tick
        self._tick += 1 + missed
        self._next_tick_s += TICK_S * (1 + missed)
        is_second = before // TICKS_PER_READING != self._tick // TICKS_PER_READING
        return True, is_second or is_full_hour


def _hour(unix_s: float) -> int:
    return math.floor(unix_s / HOUR_S)

"""The only reader of time. Pure packages take ``now_s`` instead of importing this."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where a process shell gets the time from."""

    def now_s(self) -> float:
        """Return seconds on a clock that never goes back; only differences mean anything."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Return ``time.monotonic()``; comparable between processes of one boot."""
        return time.monotonic()


class ManualClock:
    """A clock for tests: it stands still until told to move."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Return the time last set."""
        return self._now_s

    def advance(self, by_s: float) -> None:
        """Move forward by ``by_s`` seconds."""
        self._now_s += by_s


def unix_now_s() -> float:
    """Return wall-clock seconds since 1970. For showing to people only, never for arithmetic."""
    return time.time()

"""Tell which XIDs are new, of those that several sources tell of; pure."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

SAME_WITHIN_S: Final = 10.0
"""The same XID of the same device from another source within this time is the same event."""

_MAX_KEPT: Final = 64


@dataclass(slots=True)
class _Event:
    at_s: float
    sources: set[str] = field(default_factory=set)


class XidMerge:
    """Each event is told of once by each source; which of them is first does not matter."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, int], deque[_Event]] = {}
        self._counts: dict[str, int] = {}

    def is_new(self, meter: str, number: int, source: str, at_s: float) -> bool:
        """Take what a source tells of a device; return whether it was not known yet."""
        events = self._events.setdefault((meter, number), deque(maxlen=_MAX_KEPT))
        for event in events:
            if abs(at_s - event.at_s) <= SAME_WITHIN_S and source not in event.sources:
                event.sources.add(source)
                return False
        events.append(_Event(at_s, {source}))
        self._counts[meter] = self._counts.get(meter, 0) + 1
        return True

    def count(self, meter: str) -> int:
        """Return how many events there have been on a device."""
        return self._counts.get(meter, 0)

"""Legs that engines still run for a dispatcher that is no more.

Engines outlive the dispatcher. What an earlier one had asked of them goes on, and nobody waits
for it: such a leg shows itself by its next output, and is then aborted. Its lease, if it holds
one, ends by the engine's own time limit.
"""

from collections.abc import Iterable
from typing import Final

from nodeserve.ids import RequestId

MAX_REMEMBERED: Final = 16_384
"""More than all engines of a node run at a time. A leg forgotten too early is aborted twice,
which does nothing."""


def request_id(dispatcher: int, number: int) -> RequestId:
    """Return the id of a dispatcher's request; no other dispatcher of the node has the same."""
    return RequestId(f"d{dispatcher}-{number}")


class Orphans:
    """Tells the legs of earlier dispatchers from our own. ``dispatcher`` is our generation."""

    def __init__(self, dispatcher: int) -> None:
        self._own = f"d{dispatcher}-"
        self._seen: dict[tuple[int, str], None] = {}

    def take(self, engine: int, leg_ids: Iterable[str]) -> list[str]:
        """Return the legs of an engine that are not ours and were not returned before."""
        found = []
        for leg_id in leg_ids:
            key = (engine, leg_id)
            if leg_id.startswith(self._own) or key in self._seen:
                continue
            self._seen[key] = None
            found.append(leg_id)
        while len(self._seen) > MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return found

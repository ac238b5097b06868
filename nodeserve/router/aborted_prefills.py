"""Aborted prefill legs that may yet hand over: the handoff was under way when the abort came."""

from collections.abc import Iterable

from nodeserve.ids import Generation, LegId
from nodeserve.router.request_flow import RequestFlow


class AbortedPrefills:
    """Remembers the last ``limit`` of them.

    Engines that stop a leg say nothing, so they are forgotten by number.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._flows: dict[LegId, RequestFlow] = {}

    def remember(self, leg_id: LegId, flow: RequestFlow) -> None:
        """Note one; past the limit the oldest is forgotten."""
        self._flows[leg_id] = flow
        if len(self._flows) > self._limit:
            del self._flows[next(iter(self._flows))]

    def take(self, leg_id: LegId) -> RequestFlow | None:
        """Return the flow of a leg that has ended after all, and forget it."""
        return self._flows.pop(leg_id, None)

    def forget_worker(self, generation: Generation) -> None:
        """Forget the legs of a worker that is gone."""
        kept = {leg: flow for leg, flow in self._flows.items() if flow.generation != generation}
        self._flows = kept

    def flows(self) -> Iterable[RequestFlow]:
        """Return their flows, oldest first."""
        return self._flows.values()

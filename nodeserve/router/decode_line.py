"""The line of requests that have started and for which no decode slot is kept yet."""

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

from nodeserve.ids import RequestId
from nodeserve.router.admission import MAX_OVERTAKEN, MAX_SKIPPED
from nodeserve.router.request_flow import RequestFlow

_Place = tuple[int, int]


@dataclass(slots=True)
class _Waiting:
    place: _Place
    flow: RequestFlow
    overtaken: int = 0


def _place(waiting: _Waiting) -> _Place:
    return waiting.place


def _urgency(waiting: _Waiting) -> tuple[int, int]:
    return waiting.flow.request.priority, waiting.flow.arrival


class DecodeLine:
    """Requests that wait for room to decode, by their listeners' bands, then as they started.

    Places belong to listeners: which of its requests takes a place is up to their priority.
    So a tenant's urgent requests pass its own ones, and nobody else's.
    Who does not fit is passed as in the queue, at most `MAX_OVERTAKEN` times.
    """

    def __init__(self) -> None:
        self._line: list[_Waiting] = []
        self._waiting: set[RequestId] = set()

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    def num_up_to(self, band: int) -> int:
        """Count those whose band goes before or is ``band``."""
        return bisect_left(self._line, (band + 1, 0), key=_place)

    def push(self, flow: RequestFlow, band: int) -> None:
        """Let a request that has started wait at its place."""
        self._waiting.add(flow.request.request_id)
        insort(self._line, _Waiting((band, flow.turn), flow), key=_place)
        listener = flow.request.listener
        places = [at for at, w in enumerate(self._line) if w.flow.request.listener == listener]
        several = sorted((self._line[at] for at in places), key=_urgency)
        for waiting, place in zip(several, [self._line[at].place for at in places], strict=True):
            waiting.place = place
        self._line.sort(key=_place)

    def discard(self, request_id: RequestId) -> None:
        """Take a request out; one that does not wait is ignored."""
        if request_id in self._waiting:
            self._waiting.remove(request_id)
            self._line = [w for w in self._line if w.flow.request.request_id != request_id]

    def walk(self, try_decode: Callable[[RequestFlow], bool]) -> None:
        """Offer the room there is to those who wait, in order.

        Args:
            try_decode: Gives a request a slot, and returns whether it did, or ended its wait
                otherwise. It must not touch this line.
        """
        if not self._line:
            return
        passed: list[_Waiting] = []
        num_gone = 0
        for waiting in self._line:
            if try_decode(waiting.flow):
                num_gone += 1
                self._waiting.remove(waiting.flow.request.request_id)
                for other in passed:
                    other.overtaken += 1
            else:
                passed.append(waiting)
                if len(passed) > MAX_SKIPPED or waiting.overtaken >= MAX_OVERTAKEN:
                    break
        self._line[: num_gone + len(passed)] = passed

    def request_ids(self) -> list[RequestId]:
        """Return who waits, first one first."""
        return [waiting.flow.request.request_id for waiting in self._line]

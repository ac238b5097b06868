"""Who may start now: room by KV capacity, and waiting in order.

A leg is placed only where its blocks fit beside what is already promised there, because an
engine that runs out of KV preempts and computes again. Blocks that the worker's prefix cache
holds are not counted a second time. Where that guess is too kind, the engine preempts and
says so in its load report, and gets nothing new until its own queue is empty again.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nodeserve.ids import RequestId
from nodeserve.router.messages import LegKind, RequestArrived
from nodeserve.router.request_flow import RequestFlow
from nodeserve.router.worker_view import WorkerView

OUTPUT_LOOKAHEAD_TOKENS: Final = 256
"""How much of a request's output gets room in advance. Clients ask for far more than they use:
reserving ``max_tokens`` would leave most of the KV cache empty."""

PREFILLS_AHEAD: Final = 4
"""Prompts per decode worker that may be prefilled before a decode slot is free. It hides their
prefill behind the wait; more would only pin KV of the prefill workers under leases that age."""

MAX_SKIPPED: Final = 4
"""How many waiting requests that do not fit are looked past, at most, per walk along a line."""

MAX_OVERTAKEN: Final = 32
"""How often one request is passed by later ones. After that everybody behind it waits."""


def tokens_for(kind: LegKind, request: RequestArrived) -> int:
    """Return for how many tokens a leg needs blocks.

    A prefill leg needs its prompt. The others need a bounded share of their output as well.
    """
    if kind is LegKind.PREFILL:
        return request.prompt_tokens
    return request.prompt_tokens + min(request.max_tokens, OUTPUT_LOOKAHEAD_TOKENS)


def blocks_for(tokens: int, view: WorkerView, cached_blocks: int) -> int:
    """Return how many blocks of a worker so many tokens take, at least 1."""
    return max(-(-tokens // view.block_size) - cached_blocks, 1)


def has_room(view: WorkerView, kind: LegKind, blocks: int) -> bool:
    """Tell whether a leg of so many blocks may start on a worker.

    Whatever its size, a request may run where nothing else does. For a decode leg leases do not
    count as something else: two workers may hold leases that wait for each other's room.
    """
    num_seqs = len(view.legs) + len(view.slots)
    if num_seqs:
        if num_seqs >= view.max_num_seqs:
            return False
        if kind is not LegKind.PREFILL and view.is_pressed:
            return False
    elif kind is LegKind.DECODE or not view.leases:
        return True
    return view.reserved_blocks + blocks <= view.num_blocks


@dataclass(slots=True)
class _Waiting:
    order: tuple[int, int]
    request_id: RequestId
    overtaken: int = 0


def _order(waiting: _Waiting) -> tuple[int, int]:
    return waiting.order


class WaitingLine:
    """Requests that wait for room, by priority and within it by arrival.

    A request that does not fit is passed by smaller ones behind it: room would stand empty
    while it waits. It is passed at most `MAX_OVERTAKEN` times, then it blocks the line until
    it fits, which it does when enough of what runs has finished. So nobody waits forever.
    """

    def __init__(self) -> None:
        self._line: list[_Waiting] = []
        self._orders: dict[RequestId, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._orders

    def push(self, flow: RequestFlow) -> int:
        """Let a request wait at its place, and return how many are before it."""
        request_id = flow.request.request_id
        order = (flow.request.priority, flow.arrival)
        self._orders[request_id] = order
        place = bisect_left(self._line, order, key=_order)
        self._line.insert(place, _Waiting(order, request_id))
        return place

    def discard(self, request_id: RequestId) -> None:
        """Take a request out; one that does not wait is ignored."""
        order = self._orders.pop(request_id, None)
        if order is not None:
            del self._line[bisect_left(self._line, order, key=_order)]

    def walk(self, try_start: Callable[[RequestId, int], bool]) -> None:
        """Offer the room there is to those who wait, in order.

        Args:
            try_start: Starts a request, given how many before it were passed, and returns
                whether it did. It must not touch this line.
        """
        if not self._line:
            return
        passed: list[_Waiting] = []
        num_started = 0
        for waiting in self._line:
            if try_start(waiting.request_id, len(passed)):
                num_started += 1
                del self._orders[waiting.request_id]
                for other in passed:
                    other.overtaken += 1
            else:
                passed.append(waiting)
                if len(passed) > MAX_SKIPPED or waiting.overtaken >= MAX_OVERTAKEN:
                    break
        self._line[: num_started + len(passed)] = passed

    def request_ids(self) -> list[RequestId]:
        """Return who waits, first one first."""
        return [waiting.request_id for waiting in self._line]

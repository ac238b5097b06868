"""UTILITY calls: a gateway asks one engine, we ask all workers and merge their answers.

On the wire a utility is any method of the engine by its name, so only those listed here go
through; the rest is answered with a failure that names the method.
"""

import enum
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nodeserve.dispatcher.gateway_link import GatewayLink
from nodeserve.dispatcher.worker_link import Worker
from nodeserve.ids import LeaseId
from nodeserve.wire.engine_core import decode_utility, encode_utility

_LOG: Final = logging.getLogger(__name__)

RELEASE_METHOD: Final = "nodeserve_release"

MAX_PENDING: Final = 1000
"""Calls of all gateways that may wait at a time; further ones are refused."""


class Merge(enum.Enum):
    """How the workers' results become one. Source: vllm/v1/engine/core_client.py (0.32)."""

    FIRST = "first"
    ALL = "all"
    SAME = "same"


ALLOWED: Final[Mapping[str, Merge]] = {
    "get_supported_tasks": Merge.FIRST,
    "is_sleeping": Merge.SAME,
    "is_scheduler_paused": Merge.SAME,
    "get_weight_version": Merge.SAME,
    "reset_prefix_cache": Merge.ALL,
    "reset_mm_cache": Merge.FIRST,
    "reset_encoder_cache": Merge.FIRST,
    "add_lora": Merge.ALL,
    "remove_lora": Merge.ALL,
    "pin_lora": Merge.ALL,
    "list_loras": Merge.FIRST,
}
"""What a gateway may call. Not here: code execution (collective_rpc), file writes (save_*,
profile), new weights, and what stops the whole node (sleep, pause_scheduler)."""

Answer = Callable[[GatewayLink, int, str | None, object], None]
"""Sends ``(call_id, failure, result)`` to a gateway."""

Ask = Callable[[Worker, bytes, list[bytes]], None]
"""Sends a UTILITY to a worker; what becomes of a worker that takes nothing is its business."""


@dataclass(slots=True, eq=False)
class _Call:
    gateway: GatewayLink
    call_id: int
    method: str
    until_s: float
    waiting: dict[int, Worker] = field(default_factory=dict)
    results: list[Any] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


Then = Callable[[str | None, Any], None]
"""Takes the failure of a call of our own, or None and the result."""


@dataclass(frozen=True, slots=True)
class _OwnCall:
    worker: Worker
    method: str
    then: Then
    until_s: float


class Utilities:
    """The utility calls in flight.

    Attributes:
        num_refused: Calls of methods that are not allowed.
    """

    def __init__(self, ask: Ask, answer: Answer, deadline_s: float, *, dispatcher: int) -> None:
        """Number the calls apart from those of earlier dispatchers, by our generation.

        An engine may still answer a call of a dispatcher that is no more.
        """
        self._ask = ask
        self._answer = answer
        self._deadline_s = deadline_s
        self._numbers = itertools.count((dispatcher << 32) + 1)
        self._pending: dict[int, _Call] = {}
        self._calls: dict[_Call, None] = {}
        self._own: dict[int, _OwnCall] = {}
        self.num_refused = 0

    def call(
        self, gateway: GatewayLink, frames: list[bytes], workers: list[Worker], *, now_s: float
    ) -> None:
        """Take a gateway's UTILITY, payload and tensor frames.

        Raises:
            ValueError: The payload is not a utility call, so that nobody can be answered.
        """
        _, call_id, method, args = decode_utility(frames[0])
        cause = self._refusal(method, workers)
        if cause is not None:
            self.num_refused += 1
            _LOG.warning("utility_refused gateway=%s method=%.80s", gateway.name, method)
            self._answer(gateway, call_id, f"nodeserve: {method:.80}: {cause}", None)
            return
        call = _Call(gateway, call_id, method, now_s + self._deadline_s)
        self._calls[call] = None
        for worker in workers:
            number = next(self._numbers)
            self._pending[number] = call
            call.waiting[number] = worker
        for number, worker in list(call.waiting.items()):
            self._ask(worker, encode_utility(number, method, args), frames[1:])

    def release(self, worker: Worker, lease_id: LeaseId) -> None:
        """Tell a worker to unpin a lease's blocks; its answer is swallowed."""
        number = next(self._numbers)
        self._ask(worker, encode_utility(number, RELEASE_METHOD, [[lease_id]]), [])

    def ask(
        self, worker: Worker, method: str, args: list[Any], then: Then, *, now_s: float
    ) -> None:
        """Call a method of one worker for ourselves; ``then`` is called once, whatever happens."""
        number = next(self._numbers)
        self._own[number] = _OwnCall(worker, method, then, now_s + self._deadline_s)
        self._ask(worker, encode_utility(number, method, args), [])

    def answered(self, worker: Worker, answer: object) -> None:
        """Take a worker's ``[call_id, failure, [type info, result]]``.

        Raises:
            ValueError: It is not an answer.
        """
        match answer:
            case [int(number), None | str() as failure, None | [_, _] as result]:
                pass
            case _:
                text = f"utility answer {answer!r:.100} cannot be read"
                raise ValueError(text)
        own = self._own.get(number)
        if own is not None and own.worker is worker:
            del self._own[number]
            own.then(failure, result[1] if result is not None else None)
            return
        call = self._pending.get(number)
        if call is None or call.waiting.get(number) is not worker:
            return  # a release's, or past its deadline
        if failure is not None:
            call.failures.append(f"worker {worker.name}: {failure}")
        else:
            call.results.append(result[1] if result is not None else None)
        self._settle(call, number)

    def worker_gone(self, worker: Worker) -> None:
        """Wait no longer for a worker that died: the others speak for the node."""
        self._end_own(lambda own: own.worker is worker, "the worker is gone")
        for number, call in list(self._pending.items()):
            if call.waiting.get(number) is worker:
                self._settle(call, number)

    def gateway_gone(self, gateway: GatewayLink) -> None:
        """Forget the calls of a gateway that nobody can answer any more."""
        for call in [call for call in self._calls if call.gateway is gateway]:
            self._forget(call)

    def expire(self, *, now_s: float) -> None:
        """Answer the calls whose deadline has passed with a failure."""
        late = f"no answer within {self._deadline_s:g} s"
        self._end_own(lambda own: own.until_s <= now_s, late)
        for call in [call for call in self._calls if call.until_s <= now_s]:
            names = ", ".join(sorted(worker.name for worker in call.waiting.values()))
            call.failures.append(f"no answer from {names} within {self._deadline_s:g} s")
            self._finish(call)

    def _end_own(self, ends: Callable[[_OwnCall], bool], failure: str) -> None:
        for number in [number for number, own in self._own.items() if ends(own)]:
            own = self._own.pop(number)
            own.then(f"{own.method}: {failure}", None)

    def _refusal(self, method: str, workers: list[Worker]) -> str | None:
        if method not in ALLOWED:
            return "not allowed from a gateway; use the nodeserve command line"
        if not workers:
            return "no worker is attached; try again later"
        if len(self._calls) >= MAX_PENDING:
            return f"{MAX_PENDING} calls wait already; try again later"
        return None

    def _settle(self, call: _Call, number: int) -> None:
        self._pending.pop(number, None)
        call.waiting.pop(number, None)
        if not call.waiting:
            self._finish(call)

    def _forget(self, call: _Call) -> None:
        self._calls.pop(call, None)
        for number in call.waiting:
            self._pending.pop(number, None)

    def _finish(self, call: _Call) -> None:
        self._forget(call)
        failure, result = _merged(call)
        self._answer(call.gateway, call.call_id, failure, result)


def _merged(call: _Call) -> tuple[str | None, Any]:
    if call.failures:
        return f"nodeserve: {call.method}: " + "; ".join(call.failures), None
    if not call.results:
        return f"nodeserve: {call.method}: every worker it was sent to died; try again", None
    first = call.results[0]
    match ALLOWED[call.method]:
        case Merge.FIRST:
            return None, first
        case Merge.ALL:
            return None, all(call.results)
        case Merge.SAME:
            if any(result != first for result in call.results):
                return f"nodeserve: {call.method}: workers differ: {call.results!r:.200}", None
            return None, first

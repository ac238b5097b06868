"""What the dispatcher keeps of a client's request and of each leg of it."""

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nodeserve.ids import LegId, RequestId
from nodeserve.router.messages import LegKind
from nodeserve.wire.engine_core import AddRequest
from nodeserve.wire.engine_outputs import Handoff
from nodeserve.wire.kinds import Role

if TYPE_CHECKING:
    from nodeserve.dispatcher.gateway_link import GatewayLink
    from nodeserve.dispatcher.worker_link import Worker


@dataclass(slots=True, eq=False)
class ClientRequest:
    """One request of one gateway.

    ``add`` and ``aux`` are what the gateway sent; of a request that is not ``restorable`` they
    go once a leg has answered, for after that no leg is sent again. ``sent`` is every token of
    the answer that its gateway was sent. ``legs`` are all it has had, as far as they are booked,
    and ``scrap_tokens`` what of them was computed again. Times are seconds of the dispatcher's
    clock.
    """

    request_id: RequestId
    wire_id: str
    gateway: "GatewayLink"
    add: AddRequest | None
    aux: list[bytes]
    prompt_tokens: int
    arrived_s: float
    restorable: bool = False
    has_stop_strings: bool = False
    sent: "array[int]" = field(default_factory=lambda: array("I"))
    leg: "Leg | None" = None
    handoff: Handoff | None = None
    prefilled_s: float = 0.0
    prefill_stats: dict[str, Any] | None = None
    prefill_events: list[Any] | None = None
    first_output_s: float | None = None
    cached_tokens: int = 0
    handoff_s: float = 0.0
    prefill_worker: str | None = None
    decode_worker: str | None = None
    resumed: int = 0
    legs: "list[Leg]" = field(default_factory=list)
    scrap_tokens: int = 0

    @property
    def output_tokens(self) -> int:
        """How long the answer is so far."""
        return len(self.sent)


@dataclass(slots=True, eq=False)
class Leg:
    """One attempt at (part of) a request on one worker.

    ``wire_id``, ``batch`` and ``sent`` repeat what ``request`` knows, for the sake of the path
    that every token takes: ``batch`` is the gateway's list of outputs to send next. ``role`` is
    what the worker was used for when it began; ``is_scrap`` says that what it computed was thrown
    away or computed again.
    """

    leg_id: LegId
    kind: LegKind
    request: ClientRequest
    worker: "Worker"
    wire_id: str
    batch: list[Any]
    sent: "array[int]"
    role: Role
    started: bool = False
    last_s: float = 0.0
    is_scrap: bool = False

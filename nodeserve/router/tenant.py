"""One listener's account: who of it waits, how many run, and what GPU time it has had."""

from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from nodeserve.errors import InvariantError
from nodeserve.ids import RequestId
from nodeserve.router.messages import ListenerChanged
from nodeserve.router.request_flow import RequestFlow

FIRST_GUESS_TOKENS: Final = 256.0
"""Output tokens that a request is charged for before its listener has shown how many it needs."""

GUESS_WEIGHT: Final = 1 / 16
"""How much one request's real length moves its listener's guess."""


class Order(NamedTuple):
    """Who has started before goes first, for it is paid for; then by priority and by arrival."""

    new: bool
    priority: int
    arrival: int


@dataclass(slots=True)
class Waiting:
    """One request in a line. ``cost_s`` is a guess; 0 for one that has started before."""

    order: Order
    request_id: RequestId
    cost_s: float = 0.0
    overtaken: int = 0


def _order(waiting: Waiting) -> Order:
    return waiting.order


@dataclass(frozen=True, slots=True)
class TenantSnapshot:
    """One listener at one moment, for people and metrics.

    ``refused`` found a full queue, ``expired`` waited too long; ``gpu_s`` is modelled, and
    counts what runs with the output that is guessed for it.
    """

    name: str
    running: int
    queued: int
    refused: int
    expired: int
    gpu_s: float


@dataclass(slots=True)
class Band:
    """Listeners of one priority: ``virtual_s`` is the start tag of the last one that started."""

    virtual_s: float = 0.0


class Tenant:
    """One listener: its settings, its line, and its virtual time.

    ``virtual_s`` is the start tag of its next request: the GPU seconds charged so far, divided
    by its weight. ``num_flows`` counts its live requests, those that wait included.
    """

    __slots__ = (
        "_orders",
        "band",
        "expired",
        "gpu_s",
        "guess_tokens",
        "line",
        "num_flows",
        "refused",
        "settings",
        "since_s",
        "virtual_s",
    )

    def __init__(self, settings: ListenerChanged, band: Band) -> None:
        self.settings = settings
        self.band = band
        self.line: list[Waiting] = []
        self.num_flows = 0
        self.refused = 0
        self.expired = 0
        self.gpu_s = 0.0
        self.guess_tokens = FIRST_GUESS_TOKENS
        self.virtual_s = 0.0
        # Since when those wait who have not started yet: the one that waits longest first.
        self.since_s: OrderedDict[RequestId, float] = OrderedDict()
        self._orders: dict[RequestId, Order] = {}

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._orders

    @property
    def may_start(self) -> bool:
        """Tell whether its own limit lets one more of its requests run."""
        limit = self.settings.max_running
        return limit is None or self.num_flows - len(self.line) < limit

    @property
    def deadline_s(self) -> float | None:
        """When the one that has waited longest must have started; None where nobody must."""
        timeout_s = self.settings.queue_timeout_s
        if timeout_s is None or not self.since_s:
            return None
        return next(iter(self.since_s.values())) + timeout_s

    def push(self, flow: RequestFlow, cost_s: float, *, now_s: float) -> int:
        """Let a request wait at its place, and return how many are before it."""
        request_id = flow.request.request_id
        new = flow.paid_s is None
        order = Order(new, flow.request.priority, flow.arrival)
        self._orders[request_id] = order
        if new:
            self.since_s[request_id] = now_s
        place = bisect_left(self.line, order, key=_order)
        self.line.insert(place, Waiting(order, request_id, cost_s if new else 0.0))
        return place

    def discard(self, request_id: RequestId) -> None:
        """Take out a request that waits."""
        order = self._orders.pop(request_id)
        self.since_s.pop(request_id, None)
        del self.line[bisect_left(self.line, order, key=_order)]

    def catch_up(self) -> None:
        """Begin where the band is: a listener of which nobody waits is owed nothing."""
        if not self.line and self.virtual_s < self.band.virtual_s:
            self.virtual_s = self.band.virtual_s

    def charge(self, gpu_s: float) -> None:
        """Book GPU time; a negative one gives back what was guessed too high."""
        self.gpu_s += gpu_s
        self.virtual_s += gpu_s / self.settings.weight

    def learn(self, output_tokens: int) -> None:
        """Let a request's real length move the guess for the next ones."""
        self.guess_tokens += (output_tokens - self.guess_tokens) * GUESS_WEIGHT

    def snapshot(self) -> TenantSnapshot:
        """Return the account as it stands."""
        return TenantSnapshot(
            name=self.settings.listener,
            running=self.num_flows - len(self.line),
            queued=len(self.line),
            refused=self.refused,
            expired=self.expired,
            gpu_s=self.gpu_s,
        )

    def check(self) -> None:
        """Check that the line is sorted and that every table knows the same requests.

        Raises:
            InvariantError: One would wait out of turn, for ever, or without its deadline.
        """
        orders = [waiting.order for waiting in self.line]
        new = {waiting.request_id for waiting in self.line if waiting.order.new}
        waiting = {waiting.request_id: waiting.order for waiting in self.line}
        sound = orders == sorted(set(orders)) and waiting == self._orders
        if not sound or new != set(self.since_s) or self.num_flows < len(self.line):
            raise InvariantError(
                f"router: {len(self.line)} requests of listener {self.settings.listener} wait,"
                f" {len(self._orders)} are known to and {len(self.since_s)} of {len(new)} have a"
                f" time since when, of {self.num_flows} alive, not all in order; report this bug"
            )

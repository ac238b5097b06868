"""Who waits for what: the queue, the line for decode slots, and who is started from them."""

from nodeserve.errors import CapacityError, NodeserveError, RequestError
from nodeserve.ids import RequestId
from nodeserve.router.admission import MAX_SKIPPED, PREFILLS_AHEAD
from nodeserve.router.books import Books
from nodeserve.router.cost import choose_decode, place, uncached_tokens
from nodeserve.router.decode_line import DecodeLine
from nodeserve.router.fair_queue import FairQueue
from nodeserve.router.messages import Command, LegKind, WakeAt
from nodeserve.router.moves import move_legs
from nodeserve.router.request_flow import (
    OVER,
    DecodePlaced,
    HandoffGivenUp,
    Phase,
    PrefillPlaced,
    Refused,
    RequestFlow,
    WholePlaced,
)
from nodeserve.router.worker_view import WorkerView


class Lines:
    """Starts requests where there is room, in order, and lines up those for whom there is none.

    It shares the router's flows and books. What the caller must do is added to ``commands``.
    """

    def __init__(
        self,
        books: Books,
        flows: dict[RequestId, RequestFlow],
        queue: FairQueue,
        local_prefill_tokens: int,
    ) -> None:
        self._books = books
        self._flows = flows
        self.local_prefill_tokens = local_prefill_tokens
        self.queue = queue
        # Requests that prefill or have prefilled and that no decode slot is kept for.
        self.decode_line = DecodeLine()
        self.commands: list[Command] = []
        self._now_s = 0.0
        self._wakes_at_s: float | None = None

    def begin(self, *, now_s: float) -> None:
        """Begin with what one event brings about."""
        self.commands = []
        self._now_s = now_s

    def arrive(self, flow: RequestFlow, max_queued: int) -> None:
        """Start a new request, or let it wait; where too many wait already one is refused."""
        request_id = flow.request.request_id
        self._flows[request_id] = flow
        tenant = self.queue.tenant_of(flow)
        tenant.num_flows += 1
        if self.queue or not tenant.may_start:
            # Room is offered to the front of each listener's line only.
            if self.queue.push(flow, now_s=self._now_s) <= MAX_SKIPPED:
                self.queue.walk(self._try_start)
        elif self._try_start(request_id, 0):
            return
        else:
            self.queue.push(flow, now_s=self._now_s)
        if request_id in self.queue:
            self._keep_bounds(flow, max_queued)
            self.wake_in_time()

    def _keep_bounds(self, flow: RequestFlow, max_queued: int) -> None:
        """Refuse a request where too many wait: this one, or the last of the longest line."""
        tenant = self.queue.tenant_of(flow)
        limit = tenant.settings.max_queued
        if limit is not None and len(tenant.line) > limit:
            name = tenant.settings.listener
            why = f"{limit} requests of listener {name} wait already, no more may; try again later"
            why += " or raise its max_queued_requests"
        elif len(self.queue) > max_queued:
            why = f"{max_queued} requests wait already, no more may; try again later or raise"
            why += " max_queued_requests"
            longest = self.queue.longest()
            if len(longest.line) > len(tenant.line) and longest.line[-1].order.new:
                tenant, flow = longest, self._flows[longest.line[-1].request_id]
        else:
            return
        self.queue.discard(flow.request.request_id)
        tenant.refused += 1
        self.close(flow)
        self.refuse(flow, why, CapacityError)

    def close(self, flow: RequestFlow) -> None:
        """Forget a request that is over."""
        del self._flows[flow.request.request_id]
        self.queue.tenant_of(flow).num_flows -= 1

    def time_has_come(self) -> None:
        """Fail those who have waited too long, then start whoever fits."""
        self._wakes_at_s = None
        for request_id, tenant in self.queue.expire(now_s=self._now_s):
            flow = self._flows[request_id]
            self.close(flow)
            self.refuse(
                flow,
                f"it has waited {tenant.settings.queue_timeout_s:g} s to start, longer than"
                f" listener {tenant.settings.listener} lets requests wait; try again later or"
                " raise its queue_timeout_s",
                CapacityError,
            )
        self.offer_room()
        self.wake_in_time()

    def wake_in_time(self) -> None:
        """Ask to be woken when somebody will have waited too long."""
        at_s = self.queue.next_deadline_s()
        if at_s is not None and (self._wakes_at_s is None or at_s < self._wakes_at_s):
            self._wakes_at_s = at_s
            self.commands.append(WakeAt(at_s))

    def offer_room(self) -> None:
        """Start whoever fits now: first those with a prefill behind them.

        Those who run on a draining worker come next: they were let in before all in the queue.
        """
        self.decode_line.walk(self._try_decode)
        if self._books.some_drain:
            self.commands += move_legs(self._books)
        self.queue.walk(self._try_start)

    def _try_start(self, request_id: RequestId, num_passed: int) -> bool:
        flow = self._flows[request_id]
        cached = self._books.cached(flow.request)
        fleet = self._books.fleet.that_hold(flow.request.prompt_tokens)
        if flow.losses.is_last_chance:
            fleet = fleet.without_suspects()
        num_waiting = self.decode_line.num_up_to(self._band(flow)) if self.decode_line else 0
        placement = place(
            flow.request,
            fleet,
            cached,
            local_prefill_tokens=self.local_prefill_tokens,
            may_reserve=num_waiting == 0,
            # Only the first in the queue: else those who need a decode worker's own prefill
            # would be passed by prompts that run ahead, and find its room gone each time.
            may_prefill_ahead=num_passed == 0 and num_waiting < PREFILLS_AHEAD * len(fleet.decode),
        )
        if placement is None:
            return False
        generation = placement.worker.generation
        self.queue.charge(flow, uncached_tokens(flow.request, placement.worker, cached))
        if placement.kind is LegKind.WHOLE:
            self.commands += self._books.start_leg(flow, WholePlaced(generation), cached)
            return True
        self.commands += self._books.start_leg(flow, PrefillPlaced(generation), cached)
        if placement.decoder is None:
            self.decode_line.push(flow, self._band(flow))
        else:
            self._books.keep_slot(flow.request, placement.decoder, cached)
        return True

    def _band(self, flow: RequestFlow) -> int:
        return self.queue.tenant_of(flow).settings.priority

    def _try_decode(self, flow: RequestFlow) -> bool:
        cached = self._books.cached(flow.request)
        decoder = choose_decode(flow.request, self._takers(flow), cached)
        if decoder is None:
            return False
        if flow.phase is Phase.HANDOFF:
            placed = DecodePlaced(decoder.generation)
            self.commands += self._books.start_leg(flow, placed, cached)
        else:
            self._books.keep_slot(flow.request, decoder, cached)
        return True

    def _takers(self, flow: RequestFlow) -> tuple[WorkerView, ...]:
        """Return who may decode what a request prefills or has prefilled."""
        prefiller = flow.lease_owner if flow.phase is Phase.HANDOFF else flow.generation
        fleet = self._books.fleet.that_hold(flow.request.prompt_tokens)
        return fleet.decoders_beside(prefiller)

    def give_up_handoff(self, flow: RequestFlow) -> None:
        """Let a request start again if nobody is left to take what it has prefilled.

        Before room is offered, for its own may be what another one waits for.
        """
        if flow.phase is Phase.HANDOFF and not self._takers(flow):
            self.decode_line.discard(flow.request.request_id)
            self.emit(flow.handle(HandoffGivenUp()))
            self.line_up(flow)

    def fleet_changed(self) -> None:
        """Refuse those in the queue that nobody can run any more, then start whoever fits."""
        for request_id in self.decode_line.request_ids():
            self.give_up_handoff(self._flows[request_id])
        for request_id in self.queue.request_ids():
            if self._books.why_too_large(self._flows[request_id].request) is not None:
                self.queue.discard(request_id)
                self.line_up(self._flows[request_id])
        self.offer_room()

    def line_up(self, flow: RequestFlow) -> None:
        """Let a request wait in the queue, or refuse it where nobody can run it."""
        if (too_large := self._books.why_too_large(flow.request)) is None:
            self.queue.push(flow, now_s=self._now_s)
        else:
            self.close(flow)
            self.refuse(flow, too_large, RequestError)

    def refuse(self, flow: RequestFlow, why: str, kind: type[NodeserveError]) -> None:
        """End a request that is not taken, and say why; ``kind`` says who can do something."""
        reason = f"request {flow.request.request_id} was not taken: {why}"
        self.emit(flow.handle(Refused(reason, kind.exit_code)))

    def move_slots(self, view: WorkerView) -> None:
        """Let those for whom a worker kept a decode slot wait for one elsewhere."""
        for request_id in self._books.give_all_slots_back(view):
            flow = self._flows[request_id]
            self.decode_line.push(flow, self._band(flow))

    def start_over(self, flow: RequestFlow) -> None:
        """After a loss: back to its old place in the queue, or out."""
        request_id = flow.request.request_id
        if flow.phase is Phase.QUEUED:
            self.decode_line.discard(request_id)
            self.line_up(flow)
        elif flow.phase in OVER:
            self.decode_line.discard(request_id)
            self.close(flow)

    def emit(self, commands: list[Command]) -> None:
        """Pass a flow's commands on and take the leases they release off the books."""
        self._books.settle(commands)
        self.commands += commands

    def leave_decode_line(self, flow: RequestFlow) -> None:
        """Give back the decode slot, or the place in the line for one."""
        self.decode_line.discard(flow.request.request_id)
        self._books.give_slot_back(flow.request.request_id)

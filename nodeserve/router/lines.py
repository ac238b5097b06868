"""Who waits for what: the queue, the line for decode slots, and who is started from them."""

from nodeserve.ids import RequestId
from nodeserve.router.admission import MAX_SKIPPED, PREFILLS_AHEAD, WaitingLine
from nodeserve.router.books import Books
from nodeserve.router.cost import choose_decode, place
from nodeserve.router.messages import Command, LegKind
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
        self, books: Books, flows: dict[RequestId, RequestFlow], local_prefill_tokens: int
    ) -> None:
        self._books = books
        self._flows = flows
        self._local_prefill_tokens = local_prefill_tokens
        self.queue = WaitingLine()
        # Requests that prefill or have prefilled and that no decode slot is kept for.
        self.decode_line = WaitingLine()
        self.commands: list[Command] = []

    def arrive(self, flow: RequestFlow, max_queued: int) -> None:
        """Start a new request, or let it wait; it is refused where too many wait already."""
        request_id = flow.request.request_id
        if self.queue:
            # Room is offered to the front of the queue only.
            if self.queue.push(flow) <= MAX_SKIPPED:
                self.queue.walk(self._try_start)
        elif self._try_start(request_id, 0):
            return
        else:
            self.queue.push(flow)
        if request_id in self.queue and len(self.queue) > max_queued:
            self.queue.discard(request_id)
            del self._flows[request_id]
            self.refuse(
                flow,
                f"{max_queued} requests wait already, no more may; try again later or raise"
                " max_queued_requests",
            )

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
        num_waiting = len(self.decode_line)
        placement = place(
            flow.request,
            fleet,
            cached,
            local_prefill_tokens=self._local_prefill_tokens,
            may_reserve=num_waiting == 0,
            # Only the first in the queue: else those who need a decode worker's own prefill
            # would be passed by prompts that run ahead, and find its room gone each time.
            may_prefill_ahead=num_passed == 0 and num_waiting < PREFILLS_AHEAD * len(fleet.decode),
        )
        if placement is None:
            return False
        generation = placement.worker.generation
        if placement.kind is LegKind.WHOLE:
            self.commands += self._books.start_leg(flow, WholePlaced(generation), cached)
            return True
        self.commands += self._books.start_leg(flow, PrefillPlaced(generation), cached)
        if placement.decoder is None:
            self.decode_line.push(flow)
        else:
            self._books.keep_slot(flow.request, placement.decoder, cached)
        return True

    def _try_decode(self, request_id: RequestId, _num_passed: int) -> bool:
        flow = self._flows[request_id]
        has_prefilled = flow.phase is Phase.HANDOFF
        prefiller = flow.lease_owner if has_prefilled else flow.generation
        fleet = self._books.fleet.that_hold(flow.request.prompt_tokens)
        takers = fleet.decoders_beside(prefiller)
        if has_prefilled and not takers:
            self.emit(flow.handle(HandoffGivenUp()))
            self.line_up(flow)
            return True
        cached = self._books.cached(flow.request)
        decoder = choose_decode(flow.request, takers, cached)
        if decoder is None:
            return False
        if has_prefilled:
            placed = DecodePlaced(decoder.generation)
            self.commands += self._books.start_leg(flow, placed, cached)
        else:
            self._books.keep_slot(flow.request, decoder, cached)
        return True

    def fleet_changed(self) -> None:
        """Refuse those in the queue that nobody can run any more, then start whoever fits."""
        for request_id in self.queue.request_ids():
            if self._books.why_too_large(self._flows[request_id].request) is not None:
                self.queue.discard(request_id)
                self.line_up(self._flows[request_id])
        self.offer_room()

    def line_up(self, flow: RequestFlow) -> None:
        """Let a request wait in the queue, or refuse it where nobody can run it."""
        if (too_large := self._books.why_too_large(flow.request)) is None:
            self.queue.push(flow)
        else:
            del self._flows[flow.request.request_id]
            self.refuse(flow, too_large)

    def refuse(self, flow: RequestFlow, why: str) -> None:
        """End a request that is not taken, and say why."""
        reason = f"request {flow.request.request_id} was not taken: {why}"
        self.emit(flow.handle(Refused(reason)))

    def move_slots(self, view: WorkerView) -> None:
        """Let those for whom a worker kept a decode slot wait for one elsewhere."""
        for request_id in self._books.give_all_slots_back(view):
            self.decode_line.push(self._flows[request_id])

    def start_over(self, flow: RequestFlow) -> None:
        """After a loss: back to its old place in the queue, or out."""
        request_id = flow.request.request_id
        if flow.phase is Phase.QUEUED:
            self.decode_line.discard(request_id)
            self.line_up(flow)
        elif flow.phase in OVER:
            self.decode_line.discard(request_id)
            del self._flows[request_id]

    def emit(self, commands: list[Command]) -> None:
        """Pass a flow's commands on and take the leases they release off the books."""
        self._books.settle(commands)
        self.commands += commands

    def leave_decode_line(self, flow: RequestFlow) -> None:
        """Give back the decode slot, or the place in the line for one."""
        self.decode_line.discard(flow.request.request_id)
        self._books.give_slot_back(flow.request.request_id)

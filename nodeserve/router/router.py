"""The routing core of one node: events in, commands out.

It owns every request's flow, the account of every worker, who waits, and the prefix index.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nodeserve.errors import InvariantError
from nodeserve.ids import RequestId
from nodeserve.router.aborted_prefills import AbortedPrefills
from nodeserve.router.admission import MAX_SKIPPED, PREFILLS_AHEAD, WaitingLine
from nodeserve.router.books import Books
from nodeserve.router.cost import choose_decode, place
from nodeserve.router.invariants import check_held, check_lines
from nodeserve.router.messages import (
    BlocksRemoved,
    BlocksStored,
    Command,
    Event,
    LegFinished,
    LegKind,
    LegStarted,
    LoadReported,
    NodeDraining,
    PrefillFinished,
    ReleaseLease,
    ReportDrained,
    ReportNodeDrained,
    RequestAborted,
    RequestArrived,
    RoleChanged,
    TimeElapsed,
    WorkerAttached,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.router.request_flow import (
    OVER,
    AbortRequested,
    DecodePlaced,
    FirstOutputSeen,
    HandoffGivenUp,
    HandoffGranted,
    LeaseOwnerLost,
    LegEnded,
    LegWorkerLost,
    Phase,
    PrefillPlaced,
    Refused,
    RequestFlow,
    WholePlaced,
)
from nodeserve.router.worker_view import WorkerSnapshot, WorkerView

MAX_ABORTED_PREFILLS: Final = 4096
"""Aborted prefill legs that are remembered for a handoff that was under way. Engines that stop
a leg say nothing, so they are forgotten by number; the lease's own time limit covers the rest."""


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """The operator's settings for routing.

    ``local_prefill_tokens`` is the uncached prompt length up to which a decode worker prefills
    by itself. ``max_queued_requests`` bounds who waits to start.
    """

    local_prefill_tokens: int = 0
    max_queued_requests: int = 10_000


class Router:
    """Decides for every request where it runs.

    Events about requests, legs and workers that are not known any more are normal races: they
    change nothing. Requests wait while no worker is there to take them.
    """

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._flows: dict[RequestId, RequestFlow] = {}
        self._num_arrivals = 0
        self._aborted_prefills = AbortedPrefills(MAX_ABORTED_PREFILLS)
        self._books = Books()
        self._queue = WaitingLine()
        # Requests that prefill or have prefilled and that no decode slot is kept for.
        self._decode_line = WaitingLine()
        self._node_draining = False
        self._node_drained = False
        self._commands: list[Command] = []
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            RequestArrived: self._request_arrived,
            RequestAborted: self._request_aborted,
            PrefillFinished: self._prefill_finished,
            LegStarted: self._leg_started,
            LegFinished: self._leg_finished,
            WorkerAttached: self._worker_attached,
            WorkerLost: self._worker_lost,
            RoleChanged: self._role_changed,
            WorkerDraining: self._worker_draining,
            LoadReported: self._load_reported,
            BlocksStored: self._books.blocks_stored,
            BlocksRemoved: self._books.blocks_removed,
            NodeDraining: self._node_begins_to_drain,
            TimeElapsed: lambda _: self._offer_room(),
        }

    @property
    def queued_count(self) -> int:
        """Count the requests that wait to start."""
        return len(self._queue)

    @property
    def running_count(self) -> int:
        """Count the requests that have started and are not over."""
        return len(self._flows) - len(self._queue)

    def views(self) -> tuple[WorkerSnapshot, ...]:
        """Return every attached worker's account, in the order of attaching."""
        return tuple(view.snapshot() for view in self._books.views.values())

    def handle(self, event: Event, *, now_s: float) -> list[Command]:  # noqa: ARG002
        """Apply one event and return what the caller must now do, in order.

        ``now_s`` is there because every core takes it; no decision depends on time yet.

        Raises:
            InvariantError: A request id or a generation was used twice; nothing changed.
        """
        self._commands = []
        self._handlers[type(event)](event)
        if self._node_draining or self._books.some_drain:
            self._report_drained()
        return self._commands

    def check(self) -> None:
        """Check everything the router holds.

        Raises:
            InvariantError: Something would leak, run twice or be lost.
        """
        self._books.check()
        check_lines(self._flows, self._books, self._queue, self._decode_line)
        check_held(self._flows, self._books, self._aborted_prefills.flows())

    # ------------------------------------------------------------------------- requests

    def _request_arrived(self, event: RequestArrived) -> None:
        request_id = event.request_id
        if request_id in self._flows:
            raise InvariantError(f"router: request {request_id} arrived twice; report this bug")
        self._num_arrivals += 1
        flow = RequestFlow(event, self._num_arrivals)
        if self._node_draining:
            self._refuse(flow, "the node is shutting down and takes nothing new; try elsewhere")
            return
        if (too_large := self._books.why_too_large(event)) is not None:
            self._refuse(flow, too_large)
            return
        self._flows[request_id] = flow
        if self._queue:
            # Room is offered to the front of the queue only.
            if self._queue.push(flow) <= MAX_SKIPPED:
                self._queue.walk(self._try_start)
        elif self._try_start(request_id, 0):
            return
        else:
            self._queue.push(flow)
        limit = self._config.max_queued_requests
        if request_id in self._queue and len(self._queue) > limit:
            self._queue.discard(request_id)
            del self._flows[request_id]
            self._refuse(
                flow,
                f"{limit} requests wait already, no more may; try again later or raise"
                " max_queued_requests",
            )

    def _request_aborted(self, event: RequestAborted) -> None:
        flow = self._flows.pop(event.request_id, None)
        if flow is None:
            return
        self._queue.discard(event.request_id)
        self._leave_decode_line(flow)
        was_prefilling = flow.phase is Phase.PREFILL
        leg_id = flow.leg_id
        self._books.end_leg(flow)
        self._emit(flow.handle(AbortRequested()))
        if was_prefilling and leg_id is not None:
            self._aborted_prefills.remember(leg_id, flow)
        self._offer_room()

    def _fleet_changed(self) -> None:
        """Refuse those in the queue that nobody can run any more, then start whoever fits."""
        for request_id in self._queue.request_ids():
            if self._books.why_too_large(self._flows[request_id].request) is not None:
                self._queue.discard(request_id)
                self._line_up(self._flows[request_id])
        self._offer_room()

    def _line_up(self, flow: RequestFlow) -> None:
        """Let a request wait in the queue, or refuse it where nobody can run it."""
        if (too_large := self._books.why_too_large(flow.request)) is None:
            self._queue.push(flow)
        else:
            del self._flows[flow.request.request_id]
            self._refuse(flow, too_large)

    def _refuse(self, flow: RequestFlow, why: str) -> None:
        reason = f"request {flow.request.request_id} was not taken: {why}"
        self._emit(flow.handle(Refused(reason)))

    # ----------------------------------------------------------------------------- legs

    def _prefill_finished(self, event: PrefillFinished) -> None:
        flow = self._books.legs.get(event.leg_id)
        if flow is None:
            aborted = self._aborted_prefills.take(event.leg_id)
            if aborted is not None:
                # Never booked: the request was over before the lease was known.
                self._commands += aborted.handle(HandoffGranted(event.lease_id))
            return
        if flow.generation is None:
            return
        if flow.phase is not Phase.PREFILL:
            self._commands.append(ReleaseLease(flow.generation, event.lease_id))
            return
        self._commands += self._books.turn_into_lease(flow, flow.generation, event.lease_id)
        decoder = self._books.slots.get(flow.request.request_id)
        if decoder is not None:
            self._books.give_slot_back(flow.request.request_id)
            placed = DecodePlaced(decoder.generation)
            cached = self._books.cached(flow.request)
            self._commands += self._books.start_leg(flow, placed, cached)
        self._offer_room()

    def _leg_started(self, event: LegStarted) -> None:
        flow = self._books.legs.get(event.leg_id)
        if flow is None or flow.generation is None or flow.phase is not Phase.DECODE:
            return
        self._books.views[flow.generation].finish_prefill(event.leg_id)
        released = flow.handle(FirstOutputSeen())
        if released:
            self._emit(released)
            self._offer_room()

    def _leg_finished(self, event: LegFinished) -> None:
        flow = self._books.legs.get(event.leg_id)
        if flow is None:
            self._aborted_prefills.take(event.leg_id)
            return
        self._books.end_leg(flow)
        self._leave_decode_line(flow)
        del self._flows[flow.request.request_id]
        self._emit(flow.handle(LegEnded()))
        self._offer_room()

    # -------------------------------------------------------------------------- workers

    def _worker_attached(self, event: WorkerAttached) -> None:
        self._books.attach(event)
        self._fleet_changed()

    def _worker_lost(self, event: WorkerLost) -> None:
        generation = event.generation
        view = self._books.close(generation)
        if view is None:
            return
        self._aborted_prefills.forget_worker(generation)
        self._move_slots(view)
        for leg_id in view.legs:
            flow = self._books.legs.pop(leg_id)
            self._leave_decode_line(flow)
            self._emit(flow.handle(LegWorkerLost()))
            self._start_over(flow)
        for lease in view.leases.values():
            flow = self._flows[lease.request_id]
            self._emit(flow.handle(LeaseOwnerLost()))
            self._start_over(flow)
        self._fleet_changed()

    def _role_changed(self, event: RoleChanged) -> None:
        view = self._books.views.get(event.generation)
        if view is not None and view.role is not event.role:
            view.role = event.role
            self._stop_placing_on(view)

    def _worker_draining(self, event: WorkerDraining) -> None:
        view = self._books.views.get(event.generation)
        if view is not None and not view.draining:
            view.draining = True
            self._stop_placing_on(view)

    def _load_reported(self, event: LoadReported) -> None:
        view = self._books.views.get(event.generation)
        if view is None:
            return
        was_pressed = view.is_pressed
        view.report(event)
        if was_pressed and not view.is_pressed:
            self._offer_room()

    def _node_begins_to_drain(self, _event: NodeDraining) -> None:
        self._node_draining = True

    def _stop_placing_on(self, view: WorkerView) -> None:
        """What runs stays; what was only promised looks for another place."""
        self._move_slots(view)
        self._books.sort_fleet()
        self._fleet_changed()

    def _move_slots(self, view: WorkerView) -> None:
        for request_id in self._books.give_all_slots_back(view):
            self._decode_line.push(self._flows[request_id])

    def _start_over(self, flow: RequestFlow) -> None:
        """After a loss: back to its old place in the queue, or out."""
        request_id = flow.request.request_id
        if flow.phase is Phase.QUEUED:
            self._decode_line.discard(request_id)
            self._line_up(flow)
        elif flow.phase in OVER:
            self._decode_line.discard(request_id)
            del self._flows[request_id]

    # ------------------------------------------------------------------------- starting

    def _offer_room(self) -> None:
        """Start whoever fits now: first those with a prefill behind them."""
        self._decode_line.walk(self._try_decode)
        self._queue.walk(self._try_start)

    def _try_start(self, request_id: RequestId, num_passed: int) -> bool:
        flow = self._flows[request_id]
        cached = self._books.cached(flow.request)
        fleet = self._books.fleet.that_hold(flow.request.prompt_tokens)
        num_waiting = len(self._decode_line)
        placement = place(
            flow.request,
            fleet,
            cached,
            local_prefill_tokens=self._config.local_prefill_tokens,
            may_reserve=num_waiting == 0,
            # Only the first in the queue: else those who need a decode worker's own prefill
            # would be passed by prompts that run ahead, and find its room gone each time.
            may_prefill_ahead=num_passed == 0 and num_waiting < PREFILLS_AHEAD * len(fleet.decode),
        )
        if placement is None:
            return False
        generation = placement.worker.generation
        if placement.kind is LegKind.WHOLE:
            self._commands += self._books.start_leg(flow, WholePlaced(generation), cached)
            return True
        self._commands += self._books.start_leg(flow, PrefillPlaced(generation), cached)
        if placement.decoder is None:
            self._decode_line.push(flow)
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
            self._emit(flow.handle(HandoffGivenUp()))
            self._line_up(flow)
            return True
        cached = self._books.cached(flow.request)
        decoder = choose_decode(flow.request, takers, cached)
        if decoder is None:
            return False
        if has_prefilled:
            placed = DecodePlaced(decoder.generation)
            self._commands += self._books.start_leg(flow, placed, cached)
        else:
            self._books.keep_slot(flow.request, decoder, cached)
        return True

    # --------------------------------------------------------------------------- ending

    def _emit(self, commands: list[Command]) -> None:
        """Pass a flow's commands on and take the leases they release off the books."""
        self._books.settle(commands)
        self._commands += commands

    def _leave_decode_line(self, flow: RequestFlow) -> None:
        """Give back the decode slot, or the place in the line for one."""
        self._decode_line.discard(flow.request.request_id)
        self._books.give_slot_back(flow.request.request_id)

    def _report_drained(self) -> None:
        self._commands += map(ReportDrained, self._books.newly_drained())
        if self._node_draining and not self._node_drained and not self._flows:
            self._node_drained = True
            self._commands.append(ReportNodeDrained())

"""The routing core of one node: events in, commands out.

It owns every request's flow, the account of every worker, who waits, and the prefix index.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nodeserve.errors import InvariantError, RequestError
from nodeserve.ids import RequestId
from nodeserve.perf_model.request_cost import TYPICAL, RequestCost
from nodeserve.router.aborted_prefills import AbortedPrefills
from nodeserve.router.books import Books
from nodeserve.router.fair_queue import FairQueue
from nodeserve.router.invariants import check_held, check_lines, check_tenants
from nodeserve.router.lines import Lines
from nodeserve.router.messages import (
    AnswersCounted,
    BlocksRemoved,
    BlocksStored,
    Command,
    Event,
    LegFinished,
    LegStarted,
    ListenerChanged,
    LoadReported,
    NodeDraining,
    PrefillFinished,
    ReleaseLease,
    ReportDrained,
    ReportNodeDrained,
    RequestAborted,
    RequestArrived,
    RoleChanged,
    SettingsChanged,
    TimeElapsed,
    WorkerAttached,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.router.request_flow import (
    AbortRequested,
    DecodePlaced,
    FirstOutputSeen,
    HandoffGranted,
    LeaseOwnerLost,
    LegEnded,
    LegWorkerLost,
    Phase,
    RequestFlow,
)
from nodeserve.router.tenant import TenantSnapshot
from nodeserve.router.worker_view import WorkerSnapshot, WorkerView

MAX_ABORTED_PREFILLS: Final = 4096
"""Aborted prefill legs that are remembered for a handoff that was under way. Engines that stop
a leg say nothing, so they are forgotten by number; the lease's own time limit covers the rest."""


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """The operator's settings for routing.

    ``local_prefill_tokens`` is the uncached prompt length up to which a decode worker prefills
    by itself. ``max_queued_requests`` bounds who waits to start. ``cost`` is what listeners are
    charged by.
    """

    local_prefill_tokens: int = 0
    max_queued_requests: int = 10_000
    cost: RequestCost = TYPICAL


class Router:
    """Decides for every request where it runs.

    Events about requests, legs and workers that are not known any more are normal races: they
    change nothing. Requests wait while no worker is there to take them.
    """

    def __init__(self, config: RouterConfig) -> None:
        self._max_queued_requests = config.max_queued_requests
        self._flows: dict[RequestId, RequestFlow] = {}
        self._num_arrivals = 0
        self._aborted_prefills = AbortedPrefills(MAX_ABORTED_PREFILLS)
        self._books = Books()
        self._queue = FairQueue(config.cost)
        self._lines = Lines(self._books, self._flows, self._queue, config.local_prefill_tokens)
        self._node_draining = False
        self._node_drained = False
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
            AnswersCounted: self._answers_counted,
            LoadReported: self._load_reported,
            BlocksStored: self._books.blocks_stored,
            BlocksRemoved: self._books.blocks_removed,
            ListenerChanged: self._listener_changed,
            NodeDraining: self._node_begins_to_drain,
            SettingsChanged: self._settings_changed,
            TimeElapsed: lambda _: self._lines.time_has_come(),
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

    def tenants(self) -> tuple[TenantSnapshot, ...]:
        """Return every listener's account, in the order in which they came."""
        return self._queue.snapshots()

    def handle(self, event: Event, *, now_s: float) -> list[Command]:
        """Apply one event and return what the caller must now do, in order.

        Raises:
            InvariantError: A request id or a generation was used twice; nothing changed.
        """
        self._lines.begin(now_s=now_s)
        self._handlers[type(event)](event)
        if self._node_draining or self._books.some_drain:
            self._report_drained()
        return self._lines.commands

    def check(self) -> None:
        """Check everything the router holds.

        Raises:
            InvariantError: Something would leak, run twice or be lost.
        """
        self._books.check()
        self._queue.check()
        check_lines(self._flows, self._books, self._queue, self._lines.decode_line)
        check_tenants(self._flows, self._queue)
        check_held(self._flows, self._books, self._aborted_prefills.flows())

    # ------------------------------------------------------------------------- requests

    def _request_arrived(self, event: RequestArrived) -> None:
        request_id = event.request_id
        if request_id in self._flows:
            raise InvariantError(f"router: request {request_id} arrived twice; report this bug")
        self._num_arrivals += 1
        flow = RequestFlow(event, self._num_arrivals)
        if (too_large := self._books.why_too_large(event)) is not None:
            self._lines.refuse(flow, too_large, RequestError)
            return
        self._lines.arrive(flow, self._max_queued_requests)

    def _request_aborted(self, event: RequestAborted) -> None:
        flow = self._flows.get(event.request_id)
        if flow is None:
            return
        self._lines.close(flow)
        self._queue.discard(event.request_id)
        self._queue.settle(flow, event.output_tokens)
        self._lines.leave_decode_line(flow)
        was_prefilling = flow.phase is Phase.PREFILL
        leg_id = flow.leg_id
        self._books.end_leg(flow)
        self._lines.emit(flow.handle(AbortRequested()))
        if was_prefilling and leg_id is not None:
            self._aborted_prefills.remember(leg_id, flow)
        self._lines.offer_room()

    # ----------------------------------------------------------------------------- legs

    def _prefill_finished(self, event: PrefillFinished) -> None:
        flow = self._books.legs.get(event.leg_id)
        if flow is None:
            aborted = self._aborted_prefills.take(event.leg_id)
            if aborted is not None:
                # Never booked: the request was over before the lease was known.
                self._lines.commands += aborted.handle(HandoffGranted(event.lease_id))
            return
        if flow.generation is None:
            return
        if flow.phase is not Phase.PREFILL:
            self._lines.commands.append(ReleaseLease(flow.generation, event.lease_id))
            return
        self._lines.commands += self._books.turn_into_lease(flow, flow.generation, event.lease_id)
        decoder = self._books.slots.get(flow.request.request_id)
        if decoder is not None:
            self._books.give_slot_back(flow.request.request_id)
            placed = DecodePlaced(decoder.generation)
            cached = self._books.cached(flow.request)
            self._lines.commands += self._books.start_leg(flow, placed, cached)
        self._lines.give_up_handoff(flow)
        self._lines.offer_room()

    def _leg_started(self, event: LegStarted) -> None:
        flow = self._books.legs.get(event.leg_id)
        if flow is None or flow.generation is None or flow.phase is not Phase.DECODE:
            return
        view = self._books.views[flow.generation]
        some_wait_for_it = event.leg_id in view.suspects
        view.finish_prefill(event.leg_id)
        released = flow.handle(FirstOutputSeen())
        self._lines.emit(released)
        if released or some_wait_for_it or self._books.some_drain:
            self._lines.offer_room()

    def _leg_finished(self, event: LegFinished) -> None:
        flow = self._books.legs.get(event.leg_id)
        if flow is None:
            self._aborted_prefills.take(event.leg_id)
            return
        self._books.end_leg(flow)
        self._lines.leave_decode_line(flow)
        self._lines.close(flow)
        self._queue.settle(flow, event.output_tokens)
        self._lines.emit(flow.handle(LegEnded()))
        self._lines.offer_room()

    # -------------------------------------------------------------------------- workers

    def _worker_attached(self, event: WorkerAttached) -> None:
        self._books.attach(event)
        self._lines.fleet_changed()

    def _worker_lost(self, event: WorkerLost) -> None:
        generation = event.generation
        view = self._books.close(generation)
        if view is None:
            return
        self._aborted_prefills.forget_worker(generation)
        self._lines.move_slots(view)
        for leg_id in view.legs:
            flow = self._books.legs.pop(leg_id)
            self._lines.leave_decode_line(flow)
            self._lines.emit(flow.handle(LegWorkerLost()))
            self._lines.start_over(flow)
        for lease in view.leases.values():
            flow = self._flows[lease.request_id]
            self._lines.emit(flow.handle(LeaseOwnerLost()))
            self._lines.start_over(flow)
        self._lines.fleet_changed()

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

    def _answers_counted(self, event: AnswersCounted) -> None:
        for leg_id, sent_tokens in event.sent_tokens.items():
            flow = self._books.legs.get(leg_id)
            if flow is not None:
                flow.sent_tokens = sent_tokens
        if self._books.some_drain:
            self._lines.offer_room()

    def _load_reported(self, event: LoadReported) -> None:
        view = self._books.views.get(event.generation)
        if view is None:
            return
        was_pressed = view.is_pressed
        view.report(event)
        if was_pressed and not view.is_pressed:
            self._lines.offer_room()

    def _listener_changed(self, event: ListenerChanged) -> None:
        self._queue.change_listener(event)
        self._lines.offer_room()
        self._lines.wake_in_time()

    def _settings_changed(self, event: SettingsChanged) -> None:
        self._max_queued_requests = event.max_queued_requests
        self._lines.local_prefill_tokens = event.local_prefill_tokens

    def _node_begins_to_drain(self, _event: NodeDraining) -> None:
        self._node_draining = True

    def _stop_placing_on(self, view: WorkerView) -> None:
        """What runs stays; what was only promised looks for another place."""
        self._lines.move_slots(view)
        self._books.sort_fleet()
        self._lines.fleet_changed()

    # --------------------------------------------------------------------------- ending

    def _report_drained(self) -> None:
        self._lines.commands += map(ReportDrained, self._books.newly_drained())
        if self._node_draining and not self._node_drained and not self._flows:
            self._node_drained = True
            self._lines.commands.append(ReportNodeDrained())

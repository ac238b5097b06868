"""Looks over the router's shoulder: what it hears and commands, and whether that is right."""

from typing import TYPE_CHECKING, Any, Final

from nodeserve.router.losses import MAX_IN_A_ROW
from nodeserve.router.messages import (
    AbortLeg,
    BlocksRemoved,
    BlocksStored,
    Command,
    Event,
    FailRequest,
    LegFinished,
    LegKind,
    LoadReported,
    NodeDraining,
    PrefillFinished,
    ReleaseLease,
    ReportDrained,
    RequestAborted,
    RequestArrived,
    RoleChanged,
    StartLeg,
    TimeElapsed,
    WorkerAttached,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.router.router import Router
from nodeserve.sim.story import RuleBrokenError

if TYPE_CHECKING:
    from nodeserve.sim.data_plane import SimDispatcher
    from nodeserve.sim.node import SimNode

MAKE_ROOM: Final = (
    LegFinished,
    PrefillFinished,
    RequestAborted,
    RoleChanged,
    WorkerAttached,
    WorkerDraining,
    WorkerLost,
)
"""After these, whoever fits must have been started."""

CHANGE_ROOM: Final = (BlocksStored, BlocksRemoved, LoadReported)
"""After these there may be room that is offered only when something ends: all that fits beside
it still runs."""


class RouterWatch:
    """What one router has done.

    Attributes:
        num_failed: Requests that it has failed.
        handoffs: Leases that it was told of and has not released.
    """

    def __init__(self, node: "SimNode", owner: "SimDispatcher", router: Router) -> None:
        self.num_failed = 0
        self.handoffs: set[tuple[int, int]] = set()
        self._node = node
        self._owner = owner
        self._router = router
        self._handle = router.handle
        self._now_s = 0.0
        self._listener_of: dict[str, str] = {}
        self._attached: set[int] = set()
        self._draining: set[int] = set()
        self._legs: dict[str, StartLeg] = {}
        self._aborted: dict[str, StartLeg] = {}
        self._num_lost = 0
        self._node_drains = False
        self._is_settled = True
        # The router is what serves, unchanged: only its one entrance is looked at.
        vars(router)["handle"] = self.handle

    def handle(self, event: Event, *, now_s: float) -> list[Command]:
        """Hand an event to the router and look at what it commands."""
        queued_before = self._router.queued_count
        self._now_s = now_s
        self._before(event)
        commands = self._handle(event, now_s=now_s)
        self._node.story.tell_of("    router hears", event)
        for command in commands:
            self._node.story.tell_of("    router says", command)
            self._look_at(command, queued_before)
        self._router.check()
        self._look_at_the_queue(event, queued_before)
        if isinstance(event, CHANGE_ROOM):
            self._is_settled = False
        elif isinstance(event, MAKE_ROOM) and commands:
            self._is_settled = True
        if self._is_settled and isinstance(event, MAKE_ROOM):
            commands = commands + self._nobody_waits_beside_room(now_s)
        return commands

    # --------------------------------------------------------------------------- events

    def _before(self, event: Event) -> None:
        match event:
            case WorkerAttached(generation=generation):
                self._attached.add(generation)
            case WorkerLost(generation=generation):
                self._num_lost += generation in self._attached
                self._attached.discard(generation)
                self.handoffs = {held for held in self.handoffs if held[0] != generation}
                lost = [leg for leg in self._legs.values() if leg.generation == generation]
                for gone in lost:
                    del self._legs[gone.leg_id]
            case WorkerDraining(generation=generation):
                self._draining.add(generation)
            case NodeDraining():
                self._node_drains = True
            case RequestArrived(request_id=request_id, listener=listener):
                self._listener_of[request_id] = listener
            case PrefillFinished(leg_id=leg_id, lease_id=lease_id):
                late = self._aborted.pop(leg_id, None)
                leg = self._legs.pop(leg_id, None)
                leg = late if leg is None else leg
                if leg is not None and leg.generation in self._attached:
                    self.handoffs.add((leg.generation, lease_id))
            case LegFinished(leg_id=leg_id):
                self._legs.pop(leg_id, None)
            case _:
                pass

    # ------------------------------------------------------------------------- commands

    def _look_at(self, command: Command, queued_before: int) -> None:
        match command:
            case StartLeg():
                self._leg_starts(command)
            case ReleaseLease(generation=generation, lease_id=lease_id):
                held = (generation, lease_id)
                self._require("a lease is released once", held in self.handoffs, command)
                self.handoffs.discard(held)
            case AbortLeg(leg_id=leg_id):
                leg = self._legs.pop(leg_id, None)
                self._require("a leg is aborted once", leg is not None, command)
                if leg is not None and leg.kind is LegKind.PREFILL:
                    self._aborted[leg_id] = leg
            case ReportDrained(generation=generation):
                legs = [leg for leg in self._legs.values() if leg.generation == generation]
                leases = [held for held in self.handoffs if held[0] == generation]
                self._require("a drained worker holds nothing", not (legs or leases), command)
            case FailRequest(reason=reason):
                self.num_failed += 1
                self._require(
                    "a failure has a cause", self._may_fail(reason, queued_before), reason
                )
            case _:
                pass

    def _leg_starts(self, leg: StartLeg) -> None:
        to = leg.generation
        self._require("legs start on live workers", to in self._attached, leg)
        self._require("draining workers get nothing", to not in self._draining, leg)
        others = [o for o in self._legs.values() if o.request_id == leg.request_id]
        self._require("a request runs once", not others, leg)
        if leg.kind is LegKind.DECODE:
            owners = {g for g, lease_id in self.handoffs if lease_id == leg.lease_id}
            self._require("a handoff is there when it is pulled", owners - {to}, leg)
        self._legs[leg.leg_id] = leg
        listener = self._listener_of[leg.request_id]
        limit = self._node.plan.listeners[int(listener.rpartition("-")[2])].max_running
        running = sum(self._listener_of[o.request_id] == listener for o in self._legs.values())
        self._require("no listener passes its limit", limit is None or running <= limit, leg)

    def _may_fail(self, reason: str, queued_before: int) -> bool:
        if "died while answering" in reason:
            return self._num_lost > 0
        if "workers died under it" in reason:
            return self._num_lost >= MAX_IN_A_ROW
        if "wait already" in reason:
            limits = [listener.max_queued for listener in self._node.plan.listeners]
            limits.append(self._node.plan.max_queued_requests)
            return any(limit is not None and queued_before >= limit for limit in limits)
        if "longer than listener" in reason:
            return any(of.queue_timeout_s < self._now_s for of in self._node.plan.listeners)
        return "shutting down" in reason and self._node_drains

    # ----------------------------------------------------------------------------- waits

    def _look_at_the_queue(self, event: Event, queued_before: int) -> None:
        limit = max(queued_before, self._node.plan.max_queued_requests)
        if isinstance(event, RequestArrived):
            queued = self._router.queued_count
            self._require("no queue passes its limit", queued <= limit, f"{queued} of {limit}")

    def _nobody_waits_beside_room(self, now_s: float) -> list[Command]:
        """Offer the room once more; return what else was due just now.

        Time may have leapt. And the first in the queue may prefill ahead of room to decode: with
        several listeners, who that is changes with what each has been charged.
        """
        said = self._handle(TimeElapsed(), now_s=now_s)
        late = [command for command in said if isinstance(command, StartLeg)]
        if len(self._node.plan.listeners) > 1:
            late = [leg for leg in late if leg.kind is not LegKind.PREFILL]
        self._require("nobody waits beside room", not late, late)
        for command in said:
            self._look_at(command, self._router.queued_count)
        return said

    def _require(self, rule: str, holds: object, detail: Any) -> None:
        if not holds:
            raise RuleBrokenError(rule, f"{self._owner}: {detail}")

    def check_end(self) -> None:
        """Check that nothing is left when every request has ended."""
        router = self._router
        left = [view for view in router.views() if view.reserved_blocks]
        self._require("nothing is left", not left, left)
        self._require("nothing is left", not self.handoffs, self.handoffs)
        self._require("nothing is left", router.running_count + router.queued_count == 0, "flows")

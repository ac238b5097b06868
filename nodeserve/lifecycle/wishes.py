"""What an operator wants of processes: that they drain, start anew, or change their roles."""

from nodeserve.errors import RequestError
from nodeserve.lifecycle import process
from nodeserve.lifecycle.health import last_for
from nodeserve.lifecycle.messages import (
    Command,
    DrainAsked,
    EndAsked,
    Replanned,
    RestartAsked,
    RoleAsked,
    TellDispatcher,
    Wish,
)
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.slot import AfterStop, Slot
from nodeserve.lifecycle.slots import Slots
from nodeserve.lifecycle.state import NodePhase
from nodeserve.wire.control import DrainWorker, SetWorkerRole
from nodeserve.wire.kinds import ProcessKind, Role

_AT_REST = (Phase.DOWN, Phase.BACKOFF, Phase.FAILED)


class Wishes:
    """Says what follows from an operator's command.

    Whoever calls ``handle`` then starts what is wanted, down, and has its fork server.
    """

    def __init__(self, slots: Slots, patience: Patience) -> None:
        self._slots = slots
        self._patience = patience

    def handle(self, event: Wish, phase: NodePhase, *, now_s: float) -> list[Command]:
        """Apply a wish to a node that is in ``phase``; return what must now be done, in order.

        Raises:
            RequestError: There is no such process, or it can't do this now; nothing changed.
        """
        match event:
            case DrainAsked(worker=name, force=force):
                return self._drain_asked(self._slots.worker(name), phase, now_s, force=force)
            case RestartAsked():
                slot = self._slots.named(event.process)
                if phase in (NodePhase.DRAINING, NodePhase.STOPPING):
                    raise RequestError(f"the node is {phase}: it starts nothing any more")
                if slot.fence is not None:
                    raise RequestError(f"{slot.name} may not start: {slot.fence}")
                return self._restart(slot, now_s, immediately=event.immediately)
            case RoleAsked(worker=name, role=role, force=force):
                return self._change_role(self._slots.worker(name), role, force=force)
            case EndAsked() | Replanned():
                return self._slots.rearrange(event, self._patience.stop_s, now_s)

    def stop(self, slot: Slot, now_s: float) -> list[Command]:
        """End a worker, whatever it still does."""
        # Fenced first: what an ending engine says of its requests is moot.
        commands = self._slots.detach(slot, "it is stopped")
        slot.attached, slot.draining, slot.drain_deadline_s = False, True, None
        return commands + self.end(slot, now_s)

    def end(self, slot: Slot, now_s: float) -> list[Command]:
        """Ask a process to end, and kill it when it does not."""
        return self._slots.apply(slot, process.StopRequested(self._patience.stop_s), now_s)

    def drain(self, slot: Slot, after: AfterStop, now_s: float) -> list[Command]:
        """Have a worker that is ready give its requests away, and then end it."""
        slot.after_stop = after
        if slot.draining:
            return []
        slot.draining = True
        slot.drain_deadline_s = now_s + self._patience.drain_s
        return [TellDispatcher(DrainWorker(generation=slot.generation))]

    def _drain_asked(
        self, slot: Slot, phase: NodePhase, now_s: float, *, force: bool
    ) -> list[Command]:
        self._require_drainable(slot, phase, force=force)
        slot.wanted = False
        if slot.life.phase is Phase.READY:
            return self.drain(slot, AfterStop.STAY_DOWN, now_s)
        slot.after_stop = AfterStop.STAY_DOWN
        return [] if slot.life.phase is Phase.STOPPING else self.end(slot, now_s)

    def _require_drainable(self, slot: Slot, phase: NodePhase, *, force: bool) -> None:
        if phase is not NodePhase.READY:
            raise RequestError(f"the node is {phase}: it drains no single worker now")
        does = None if force else last_for(self._slots, slot)
        if does is not None:
            text = (
                f"worker {slot.name} is the last one that {does}: start another one first "
                "(`nodeserve restart`), give another one its role (`nodeserve role`), drain the "
                "whole node with --node, or this worker all the same with --force"
            )
            raise RequestError(text)

    def _restart(self, slot: Slot, now_s: float, *, immediately: bool) -> list[Command]:
        serves = slot.life.phase is Phase.READY
        if slot.life.phase in _AT_REST:
            self._start_anew(slot, now_s)
            return []
        if slot.kind is ProcessKind.WORKER and serves and not immediately:
            slot.wanted = True
            return self.drain(slot, AfterStop.START_AGAIN, now_s)
        if slot.kind is ProcessKind.DISPATCHER and serves and not immediately:
            text = (
                f"{slot.name} is ready, and its end cuts off every open stream; restart it all "
                "the same with --now"
            )
            raise RequestError(text)
        slot.wanted, slot.after_stop = True, AfterStop.START_AGAIN
        if slot.kind is ProcessKind.WORKER:
            return self.stop(slot, now_s)
        if slot.kind is not ProcessKind.GATEWAY:
            return self.end(slot, now_s)
        # Once asked it takes nothing new, finishes what it has, and ends.
        grace_s = 0.0 if immediately else self._patience.drain_s + self._patience.stop_s
        return self._slots.apply(slot, process.StopRequested(grace_s), now_s)

    def _start_anew(self, slot: Slot, now_s: float) -> None:
        """Put a process down for a start that forgets its deaths, and the gateways it failed."""
        server = self._slots.forkserver_of(slot)
        if server is not None and server.life.phase is Phase.FAILED:
            text = (
                f"{slot.name} needs {server.name}, which is failed; `nodeserve restart "
                f"{server.name}` first"
            )
            raise RequestError(text)
        group = [slot]
        if slot.kind is ProcessKind.DISPATCHER:
            gateways = self._slots.of_kind(ProcessKind.GATEWAY)
            group += [other for other in gateways if other.life.phase in _AT_REST]
        for each in group:
            each.wanted = True
            self._slots.apply(each, process.StopRequested(0), now_s)

    def _change_role(self, slot: Slot, role: Role, *, force: bool) -> list[Command]:
        slot.require_role(role)
        does = None if force else last_for(self._slots, slot, then=role)
        if does is not None:
            text = (
                f"worker {slot.name} is the last one that {does}: give another one that role first,"
                " or change this one all the same with --force"
            )
            raise RequestError(text)
        slot.role, slot.role_before = role, None
        if not slot.attached:
            return []
        message = SetWorkerRole(generation=slot.generation, role=role)
        return [TellDispatcher(message)]

"""The node's life: which processes run, who is told what, and how it all ends."""

from collections.abc import Iterable, Mapping

from nodeserve.ids import Generation
from nodeserve.lifecycle import process
from nodeserve.lifecycle.device_care import DeviceCare
from nodeserve.lifecycle.health import can_serve, losses
from nodeserve.lifecycle.messages import (
    AnnounceReady,
    Command,
    DrainAsked,
    EndAsked,
    EngineReady,
    Event,
    ExitNode,
    FindingsCleared,
    FindingsReported,
    KillProcess,
    NodeEmptied,
    NodeStarted,
    ProcessEvent,
    ProcessExited,
    ProcessHeld,
    ProcessReady,
    ProcessSick,
    Replanned,
    RestartAsked,
    RoleAsked,
    StopAccepting,
    StopAsked,
    TellDispatcher,
    TimeElapsed,
    Wish,
    WorkerEmptied,
    WorkerRouted,
)
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.shutdown import SETTLE_S, Patience, daemon_exit_code, next_to_stop
from nodeserve.lifecycle.slot import AfterStop, Slot, SlotPlan
from nodeserve.lifecycle.slots import Slots
from nodeserve.lifecycle.state import NodePhase, NodeState
from nodeserve.lifecycle.wishes import Wishes
from nodeserve.wire.control import DrainNode, WorkerReady
from nodeserve.wire.kinds import ProcessKind


class NodeLife:
    """Every process of the node and what the node does next.

    A failed first start ends the node with the cause; after that a death costs one process,
    which comes back by its restart policy. The dispatcher and its gateways are one restart
    group, because the wire between them has no acknowledgement.

    Attributes:
        kept: All that it remembers.
    """

    def __init__(
        self, plans: Iterable[SlotPlan], patience: Patience, kept: NodeState | None = None
    ) -> None:
        """Begin a node, or go on where the life that had ``kept`` stopped."""
        self.kept = kept or NodeState(Slots.planned(plans))
        self._slots = self.kept.slots
        self._patience = patience
        self._wishes = Wishes(self._slots, patience)
        self._care = DeviceCare(self._slots, self.kept.devices, self._wishes)

    # ------------------------------------------------------------------------ reading

    @property
    def phase(self) -> NodePhase:
        """What the node as a whole is doing."""
        return self.kept.phase

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Every process's place in the node, by its name."""
        return self._slots.by_name

    def of_generation(self, generation: int) -> Slot | None:
        """Return the slot whose present incarnation this is; None for a fenced one."""
        return self._slots.of_generation(generation)

    @property
    def wake_at_s(self) -> float | None:
        """When the caller must hand in TimeElapsed; None when nothing is due."""
        times = [slot.life.wake_at_s for slot in self._slots.by_name.values()]
        times += [slot.drain_deadline_s for slot in self._slots.by_name.values()]
        times += [self.kept.drain_deadline_s, self.kept.settled_at_s]
        return min((at_s for at_s in times if at_s is not None), default=None)

    @property
    def state(self) -> str:
        """The node's state in one word."""
        if self._has_begun and not can_serve(self._slots):
            return "unavailable"
        return str(self.phase) if self.detail is None else "degraded"

    @property
    def _has_begun(self) -> bool:
        """Whether it is known what serves: a node without a GPU to use never gets ready."""
        return self.phase is NodePhase.READY or (
            self.phase is NodePhase.STARTING and self._slots.all_fenced()
        )

    @property
    def detail(self) -> str | None:
        """Why the node is degraded, in one line; None where it is not."""
        found = losses(self._slots) if self._has_begun else []
        return ", ".join(found) or None

    def check(self) -> None:
        """Raise InvariantError unless generations are unique and each process is consistent."""
        self._slots.check()

    # ------------------------------------------------------------------------- events

    def handle(self, event: Event, *, now_s: float) -> list[Command]:
        """Apply one event and return what the caller must now do, in order.

        Events of fenced generations are normal races and change nothing.

        Raises:
            RequestError: An operator named a process that does not exist or can't do this now.
            CapacityError: The generations are used up; restart the daemon.
        """
        commands: list[Command] = []
        match event:
            case FindingsReported() | FindingsCleared():
                self._care.hear(event)
            case _:
                commands += self._react(event, now_s)
        if self._care.is_needed:  # before anybody starts, who may be on a fenced GPU
            commands += self._care.settle(self.phase, now_s)
            commands += self._start_where_possible(now_s) + self._begin_to_serve()
        elif isinstance(event, Wish):
            commands += self._start_where_possible(now_s)
        return commands

    def _react(self, event: ProcessEvent, now_s: float) -> list[Command]:
        match event:
            case NodeStarted():
                return self._start_where_possible(now_s)
            case ProcessReady(generation=generation):
                return self._process_ready(generation, now_s)
            case EngineReady(ready=ready):
                return self._engine_ready(ready)
            case WorkerRouted(generation=generation):
                return self._worker_routed(generation, now_s)
            case ProcessExited():
                return self._exited(event, now_s)
            case ProcessSick() | ProcessHeld():
                return self._in_trouble(event)
            case WorkerEmptied(generation=generation):
                return self._worker_emptied(generation, now_s)
            case NodeEmptied():
                return self._node_emptied(now_s)
            case StopAsked():
                return self._stop_asked(now_s)
            case DrainAsked() | RestartAsked() | RoleAsked() | EndAsked() | Replanned():
                return self._wishes.handle(event, self.phase, now_s=now_s)
            case TimeElapsed():
                return self._time_elapsed(now_s)

    # ---------------------------------------------------------------------- beginning

    def _start_where_possible(self, now_s: float) -> list[Command]:
        commands: list[Command] = []
        if self.phase in (NodePhase.STARTING, NodePhase.READY):
            for slot in self._slots.by_name.values():
                if slot.may_run and slot.life.phase is Phase.DOWN and self._slots.can_fork(slot):
                    commands += self._slots.apply(slot, process.StartRequested(), now_s)
        return commands

    def gateway_spawned(self, generation: Generation) -> list[Command]:
        """Return what to do when a gateway's process exists and its sockets are made."""
        slot = self._slots.of_generation(generation)
        return [] if slot is None else self._connect_gateways()

    def _process_ready(self, generation: Generation, now_s: float) -> list[Command]:
        slot = self._slots.of_generation(generation)
        if slot is None or slot.life.phase is not Phase.STARTING:
            return []
        commands = self._became_ready(slot, now_s)
        if slot.kind is ProcessKind.FORKSERVER:
            commands += self._start_where_possible(now_s)
        elif slot.kind is ProcessKind.DISPATCHER:
            for other in self._slots.of_kind(ProcessKind.WORKER):
                commands += self._slots.attach(other)
            commands += self._connect_gateways()
        return commands

    def _connect_gateways(self) -> list[Command]:
        """Let gateways begin: at the first start once every worker is there to be used."""
        workers = [slot for slot in self._slots.of_kind(ProcessKind.WORKER) if not slot.fence]
        complete = all(worker.life.phase is Phase.READY for worker in workers)
        if self.phase is NodePhase.STARTING and (not complete or self._slots.all_fenced()):
            return []
        gateways = self._slots.of_kind(ProcessKind.GATEWAY)
        return [command for gateway in gateways for command in self._slots.connect(gateway)]

    def _became_ready(self, slot: Slot, now_s: float) -> list[Command]:
        if slot.life.phase not in (Phase.STARTING, Phase.STOPPING):
            return []
        commands = self._slots.apply(slot, process.BecameReady(), now_s)
        began = self._begin_to_serve()
        if not began and slot.kind is ProcessKind.WORKER:
            began = self._connect_gateways()
        return commands + began

    def _worker_routed(self, generation: Generation, now_s: float) -> list[Command]:
        slot = self._slots.of_generation(generation)
        return [] if slot is None else self._became_ready(slot, now_s)

    def _begin_to_serve(self) -> list[Command]:
        """Say once that the node serves, when all are ready but those on GPUs that are fenced."""
        if self.phase is not NodePhase.STARTING:
            return []
        needed = [slot for slot in self._slots.serving() if not slot.fence]
        are_ready = all(slot.life.phase is Phase.READY for slot in needed)
        if are_ready and not self._slots.all_fenced():
            self.kept.phase = NodePhase.READY
            return [AnnounceReady()]
        return self._connect_gateways()

    def _engine_ready(self, ready: WorkerReady) -> list[Command]:
        slot = self._slots.of_generation(ready.generation)
        if slot is None:
            return []
        slot.ready = ready
        return self._slots.attach(slot)

    # ------------------------------------------------------------------------- losses

    def _exited(self, event: ProcessExited, now_s: float) -> list[Command]:
        slot = self._slots.of_generation(event.generation)
        if slot is None or not slot.running:
            return []
        expected = slot.life.phase is Phase.STOPPING
        cause = slot.sick or event.cause
        commands = self._slots.detach(slot, cause)
        self._slots.apply(slot, process.Exited(retryable=event.retryable), now_s)
        slot.end(None if expected else cause)
        if self.phase in (NodePhase.DRAINING, NodePhase.STOPPING):
            self._slots.apply(slot, process.StopRequested(0), now_s)  # no restart from here on
            return commands + self._continue_stop(now_s)
        if self.phase is NodePhase.STARTING and not expected:
            reason = f"{slot.kind} {slot.name} failed to start: {cause}"
            self.kept.exit = ExitNode(daemon_exit_code(event.exit_code), reason)
            return commands + self._stop_all(now_s, grace_s=2.0)
        if slot.kind is ProcessKind.DISPATCHER:
            commands += self._restart_group(now_s)
        if expected and slot.after_stop is AfterStop.START_AGAIN:
            commands += self._start_where_possible(now_s)
        elif expected and slot.fence is None:
            slot.wanted = False
        elif not expected and not slot.may_run:  # it died while it drained
            self._slots.apply(slot, process.StopRequested(0), now_s)
        return commands

    def _restart_group(self, now_s: float) -> list[Command]:
        """End the gateways of a dead dispatcher; its workers wait for the next one."""
        commands: list[Command] = []
        for slot in self._slots.of_kind(ProcessKind.WORKER):
            slot.attached = False
        for slot in self._slots.of_kind(ProcessKind.GATEWAY):
            if slot.running:
                slot.attached = False
                slot.after_stop = AfterStop.START_AGAIN
                commands += self._slots.apply(slot, process.StopRequested(0), now_s)
        return commands

    def _in_trouble(self, event: ProcessSick | ProcessHeld) -> list[Command]:
        """Fence a sick process at once, since it may take its time to die, and kill it.

        Its death then counts like any other: no endless quick restarts.
        """
        slot = self._slots.of_generation(event.generation)
        if slot is None:
            return []
        if isinstance(event, ProcessHeld):
            slot.detail = event.cause
            return []
        if slot.life.phase not in (Phase.STARTING, Phase.READY) or slot.sick is not None:
            return []
        slot.sick = slot.detail = event.cause
        commands = self._slots.detach(slot, event.cause)
        slot.attached = False
        return [*commands, KillProcess(slot.generation)]

    # ------------------------------------------------------------------------- ending

    def _stop_asked(self, now_s: float) -> list[Command]:
        if self.phase is NodePhase.READY and self._slots.dispatcher_ready():
            return self._drain_node(now_s)
        at_once = self.phase in (NodePhase.DRAINING, NodePhase.STOPPING)
        return self._stop_all(now_s, grace_s=0.0 if at_once else 2.0)

    def _drain_node(self, now_s: float) -> list[Command]:
        """Have the gateways take nothing new, finish what they have, and end.

        Everything behind them serves on until they are gone: what they have accepted is answered,
        and what they have not is left to whoever listens next.
        """
        self.kept.phase = NodePhase.DRAINING
        self.kept.drain_deadline_s = now_s + self._patience.drain_s
        self.kept.settled_at_s = now_s + SETTLE_S
        commands: list[Command] = [StopAccepting()]
        grace_s = self._patience.drain_s + self._patience.stop_s
        for slot in self._slots.of_kind(ProcessKind.GATEWAY):
            if slot.life.phase is not Phase.STOPPING:
                commands += self._slots.apply(slot, process.StopRequested(grace_s), now_s)
        return commands + self._continue_stop(now_s)

    def _worker_emptied(self, generation: Generation, now_s: float) -> list[Command]:
        slot = self._slots.of_generation(generation)
        if slot is None or not slot.draining:
            return []
        return self._wishes.stop(slot, now_s)

    def _node_emptied(self, now_s: float) -> list[Command]:
        """Give the gateways only so long to write out the last answers."""
        if self.phase is NodePhase.DRAINING:
            for slot in self._slots.of_kind(ProcessKind.GATEWAY):
                slot.life.hurry(now_s + self._patience.stop_s)
        return []

    def _stop_all(self, now_s: float, grace_s: float | None = None) -> list[Command]:
        """Begin to stop, in order; with a grace given, everything at the same time."""
        self.kept.phase = NodePhase.STOPPING
        self.kept.drain_deadline_s = self.kept.settled_at_s = None
        commands: list[Command] = []
        if grace_s is not None:
            for slot in self._slots.by_name.values():
                slot.life.hurry(now_s + grace_s)
                if slot.life.phase is not Phase.STOPPING or grace_s == 0:
                    commands += self._slots.apply(slot, process.StopRequested(grace_s), now_s)
        return commands + self._continue_stop(now_s)

    def _continue_stop(self, now_s: float) -> list[Command]:
        """Stop the next kinds in STOP_ORDER once all before them are gone."""
        gateways = any(slot.running for slot in self._slots.of_kind(ProcessKind.GATEWAY))
        if self.phase is NodePhase.DRAINING and self._slots.dispatcher_ready() and gateways:
            return []
        self.kept.phase = NodePhase.STOPPING
        self.kept.drain_deadline_s = self.kept.settled_at_s = None
        commands: list[Command] = []
        left = next_to_stop(self._slots.by_name.values())
        for slot in left:
            if slot.life.phase is not Phase.STOPPING:
                commands += self._wishes.end(slot, now_s)
        return commands if left else [*commands, self.kept.exit]

    # --------------------------------------------------------------------------- time

    def _time_elapsed(self, now_s: float) -> list[Command]:
        commands: list[Command] = []
        if self.kept.settled_at_s is not None and self.kept.settled_at_s <= now_s:
            self.kept.settled_at_s = None
            commands.append(TellDispatcher(DrainNode()))
        if self.kept.drain_deadline_s is not None and self.kept.drain_deadline_s <= now_s:
            self.kept.exit = ExitNode(1, "requests were cut off: the drain took too long")
            commands += self._stop_all(now_s, grace_s=1.0)
        for slot in self._slots.by_name.values():
            if slot.life.wake_at_s is not None and slot.life.wake_at_s <= now_s:
                if slot.life.phase is Phase.BACKOFF and not self._slots.can_fork(slot):
                    slot.life.wake_at_s = now_s + 1.0
                    continue
                commands += self._slots.apply(slot, process.TimeElapsed(), now_s)
            elif slot.drain_deadline_s is not None and slot.drain_deadline_s <= now_s:
                commands += self._wishes.stop(slot, now_s)
        return commands

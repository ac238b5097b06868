"""All places of a node: what each asks for, and what the dispatcher is told of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from nodeserve.errors import CapacityError, InvariantError, RequestError
from nodeserve.ids import MAX_GENERATION, Generation
from nodeserve.lifecycle import process
from nodeserve.lifecycle.messages import (
    Command,
    ConnectGateway,
    EndAsked,
    KillProcess,
    Replanned,
    SpawnProcess,
    TellDispatcher,
    TerminateProcess,
)
from nodeserve.lifecycle.process import Phase, ProcessLife
from nodeserve.lifecycle.restart import RestartHistory
from nodeserve.lifecycle.slot import AfterStop, Slot, SlotPlan
from nodeserve.wire.control import AttachWorker, DetachGateway, DetachWorker
from nodeserve.wire.kinds import ProcessKind, Role


@dataclass(slots=True)
class Slots:
    """Every slot by its name, and the last of the generations, none of which is used twice."""

    by_name: dict[str, Slot]
    last_generation: int = 0

    @classmethod
    def planned(cls, plans: Iterable[SlotPlan]) -> Self:
        """Return the slots of a node that has not started."""
        return cls(
            {
                plan.name: Slot(plan, ProcessLife(RestartHistory(place=place)), role=plan.role)
                for place, plan in enumerate(plans)
            }
        )

    def replan(self, plans: Iterable[SlotPlan]) -> None:
        """Make room for new processes, and forget those that are not planned and do not run."""
        planned = {plan.name: plan for plan in plans}
        for name, slot in list(self.by_name.items()):
            if name in planned:
                slot.plan = planned[name]
            elif not slot.running:
                del self.by_name[name]
        for place, (name, plan) in enumerate(planned.items()):
            if name not in self.by_name:
                life = ProcessLife(RestartHistory(place=place))
                self.by_name[name] = Slot(plan, life, role=plan.role)

    def rearrange(self, event: EndAsked | Replanned, grace_s: float, now_s: float) -> list[Command]:
        """Have other processes from now on, or end one; new ones are not started here."""
        if isinstance(event, EndAsked):
            return self.end(event, grace_s, now_s)
        self.replan(event.plans)
        return []

    def end(self, event: EndAsked, grace_s: float, now_s: float) -> list[Command]:
        """End a process, or what is left of it, for good or to start it again."""
        slot = self.by_name[event.name]
        slot.wanted = event.start_again
        slot.after_stop = AfterStop.START_AGAIN if event.start_again else AfterStop.STAY_DOWN
        down = slot.life.phase in (Phase.DOWN, Phase.BACKOFF, Phase.FAILED)
        if slot.life.phase is Phase.STOPPING:
            return []
        if down and event.start_again:
            return self.apply(slot, process.StartRequested(), now_s)
        return self.apply(slot, process.StopRequested(grace_s), now_s)

    def check(self) -> None:
        """Raise InvariantError unless generations are unique and each process is consistent."""
        used = [slot.generation for slot in self.by_name.values() if slot.generation]
        if len(used) != len(set(used)):
            raise InvariantError(f"node: two slots share a generation: {sorted(used)}")
        for slot in self.by_name.values():
            slot.life.check()
            if slot.fence is not None and slot.life.phase is Phase.BACKOFF:
                raise InvariantError(f"node: {slot.name} is fenced and waits to be started")

    def serving(self) -> Iterable[Slot]:
        """Return the slots whose loss the node's users may notice: all but the fork servers."""
        return (slot for slot in self.by_name.values() if slot.kind is not ProcessKind.FORKSERVER)

    def of_kind(self, kind: ProcessKind) -> list[Slot]:
        """Return the slots of one kind, in the order of the plan."""
        return [slot for slot in self.by_name.values() if slot.kind is kind]

    def all_fenced(self) -> bool:
        """Return whether there are workers, and every one of them is on a GPU that is fenced."""
        workers = self.of_kind(ProcessKind.WORKER)
        return bool(workers) and all(slot.fence is not None for slot in workers)

    def forkserver_of(self, slot: Slot) -> Slot | None:
        """Return the fork server that this slot needs; None for the fork servers themselves."""
        needs = slot.plan.forkserver
        return None if needs is None else self.by_name[needs]

    def can_fork(self, slot: Slot) -> bool:
        """Return whether the fork server that this slot needs is ready."""
        server = self.forkserver_of(slot)
        return server is None or server.life.phase is Phase.READY

    def apply(self, slot: Slot, event: process.Event, now_s: float) -> list[Command]:
        """Hand an event to a slot's process; return what that asks of the caller.

        Raises:
            CapacityError: The generations are used up.
        """
        commands: list[Command] = []
        for command in slot.life.handle(event, now_s=now_s):
            match command:
                case process.Spawn():
                    commands.append(SpawnProcess(slot.name, self._next_generation(slot)))
                    slot.begun_s = now_s
                case process.Terminate():
                    commands.append(TerminateProcess(slot.generation))
                case process.Kill():
                    commands.append(KillProcess(slot.generation))
        return commands

    def _next_generation(self, slot: Slot) -> Generation:
        if self.last_generation == MAX_GENERATION:
            text = f"node: all {MAX_GENERATION} generations are used up; restart the daemon"
            raise CapacityError(text)
        self.last_generation += 1
        slot.begin(Generation(self.last_generation))
        return slot.generation

    def of_generation(self, generation: int) -> Slot | None:
        """Return the slot whose present incarnation this is; None for a fenced one."""
        held_by = (slot for slot in self.by_name.values() if slot.generation == generation)
        return next(held_by, None) if generation else None

    def worker(self, name: str) -> Slot:
        """Return a worker's slot by name.

        Raises:
            RequestError: There is no such worker; with those there are, or what to do with a
                process that is none.
        """
        slot = self.by_name.get(name)
        if slot is not None and slot.kind is ProcessKind.WORKER:
            return slot
        if slot is not None:
            what = f"{name} is no worker, `nodeserve restart {name}` renews it"
        elif name == ProcessKind.SUPERVISOR:
            what = "the supervisor is no worker, `nodeserve reload` renews it"
        else:
            what = f"worker {name} does not exist"
        names = ", ".join(s.name for s in self.of_kind(ProcessKind.WORKER))
        text = f"{what}; the workers of this node are {names}"
        raise RequestError(text)

    def named(self, name: str) -> Slot:
        """Return any process's slot by name.

        Raises:
            RequestError: There is no such process, with those there are; or it is the supervisor.
        """
        if name == ProcessKind.SUPERVISOR:
            text = "the supervisor goes on: `nodeserve reload` renews it, and ends nothing else"
            raise RequestError(text)
        slot = self.by_name.get(name)
        if slot is None:
            text = f"process {name} does not exist; this node has {', '.join(self.by_name)}"
            raise RequestError(text)
        return slot

    def dispatcher_ready(self) -> bool:
        """Return whether a dispatcher can be told something."""
        return any(s.life.phase is Phase.READY for s in self.of_kind(ProcessKind.DISPATCHER))

    def attach(self, slot: Slot) -> list[Command]:
        """Let the dispatcher route to a worker whose engine is ready, once both are there."""
        usable = slot.life.phase in (Phase.STARTING, Phase.READY) and slot.sick is None
        if slot.ready is None or slot.attached or not usable or not self.dispatcher_ready():
            return []
        slot.attached = True
        role = slot.role or Role.AGGREGATED
        message = AttachWorker(
            name=slot.name,
            generation=slot.generation,
            role=role,
            ready=slot.ready,
            draining=slot.draining,
        )
        return [TellDispatcher(message)]

    def connect(self, slot: Slot) -> list[Command]:
        """Let the dispatcher be a starting gateway's engine, once both are there."""
        starting = slot.life.phase is Phase.STARTING and slot.generation != 0
        if not starting or slot.sick is not None or slot.attached or not self.dispatcher_ready():
            return []
        slot.attached = True
        return [ConnectGateway(slot.generation)]

    def detach(self, slot: Slot, cause: str) -> list[Command]:
        """Let the dispatcher fence a worker, or let go of a gateway."""
        if not slot.attached or not self.dispatcher_ready():
            return []
        if slot.kind is ProcessKind.WORKER:
            return [TellDispatcher(DetachWorker(generation=slot.generation, reason=cause))]
        if slot.kind is ProcessKind.GATEWAY:
            return [TellDispatcher(DetachGateway(generation=slot.generation))]
        return []

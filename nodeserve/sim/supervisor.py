"""The supervisor's part: the node's life that serves, with simulated processes to command."""

from typing import TYPE_CHECKING, Final

from nodeserve.errors import RequestError
from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import (
    AnnounceReady,
    Command,
    ConnectGateway,
    EngineReady,
    Event,
    ExitNode,
    KillProcess,
    NodeEmptied,
    NodeStarted,
    ProcessExited,
    ProcessReady,
    ProcessSick,
    RestartAsked,
    SpawnProcess,
    StopAccepting,
    TellDispatcher,
    TerminateProcess,
    TimeElapsed,
    WorkerEmptied,
    WorkerRouted,
)
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.slot import Slot, SlotPlan
from nodeserve.lifecycle.state import NodePhase
from nodeserve.sim.event_queue import Scheduled
from nodeserve.sim.faults import BLOCK_MANAGER, DISPATCHER, FORKSERVER, Plan, gateway_name
from nodeserve.sim.process import Process
from nodeserve.sim.story import RuleBrokenError
from nodeserve.wire import control
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.kv_control import BlockManagerReady
from nodeserve.wire.spawn import TenantSpec

if TYPE_CHECKING:
    from nodeserve.sim.node import SimNode

PATIENCE: Final = Patience(drain_s=5.0, stop_s=1.0)


def slot_plans(plan: Plan) -> list[SlotPlan]:
    """Return every process of the node, as the supervisor's own plan does."""
    plans = [
        SlotPlan(FORKSERVER, ProcessKind.FORKSERVER),
        SlotPlan(DISPATCHER, ProcessKind.DISPATCHER, FORKSERVER),
    ]
    if plan.has_tier:
        plans.append(SlotPlan(BLOCK_MANAGER, ProcessKind.BLOCK_MANAGER, FORKSERVER))
    plans += [
        SlotPlan(worker.name, ProcessKind.WORKER, FORKSERVER, worker.role)
        for worker in plan.workers
    ]
    plans += [
        SlotPlan(gateway_name(listener), ProcessKind.GATEWAY, FORKSERVER)
        for listener in range(len(plan.listeners))
    ]
    return plans


class SimSupervisor:
    """Hands events to the node's life and carries out what it says, as the real one does.

    Attributes:
        life: The one that serves.
        ended: How the node ended; None until then.
        accepts: Whether clients can still connect.
    """

    def __init__(self, node: "SimNode") -> None:
        self.life = NodeLife(slot_plans(node.plan), PATIENCE)
        self.ended: ExitNode | None = None
        self.accepts = True
        self.was_ready = False
        self._node = node
        self._processes: dict[int, Process] = {}
        self._used: set[int] = set()
        self._wake: Scheduled | None = None

    def start(self) -> None:
        """Start the node."""
        self.apply(NodeStarted())

    @property
    def processes(self) -> list[Process]:
        """The processes that live."""
        return list(self._processes.values())

    def by_name(self, name: str) -> Process | None:
        """Return a slot's present process, if it lives."""
        slot = self.life.slots.get(name)
        return None if slot is None else self._processes.get(slot.generation)

    def apply(self, event: Event) -> None:
        """Hand one event to the node's life and carry out what it says."""
        if self.ended is not None:
            return
        story = self._node.story
        story.tell_of("  supervisor hears", event)
        for command in self.life.handle(event, now_s=self._node.queue.now_s()):
            story.tell_of("  supervisor says", command)
            self._carry_out(command)
        self.life.check()
        self._check_degradation()
        if self._wake is not None:
            self._wake.cancel()
        wake_at_s = self.life.wake_at_s
        if wake_at_s is not None and self.ended is None:
            self._wake = self._node.queue.at(wake_at_s, lambda: self.apply(TimeElapsed()))

    def _check_degradation(self) -> None:
        """Check that a node which lacks nothing but its block manager goes on serving."""
        slots = self.life.slots.values()
        lost = [slot.name for slot in slots if slot.draining or not slot.serves]
        if self.life.phase is NodePhase.READY and lost == [BLOCK_MANAGER]:
            wanted = self.life.slots[BLOCK_MANAGER].wanted
            if self.life.state != ("degraded" if wanted else "ready"):
                rule = "without its block manager a node is degraded, never down"
                raise RuleBrokenError(rule, self.life.state)

    def wish(self, event: Event) -> None:
        """Hand in what an operator wants; a refusal is an answer like any other."""
        try:
            self.apply(event)
        except RequestError as error:
            self._node.story.tell("  supervisor refuses: {}", error)

    # ------------------------------------------------------------------------- commands

    def _carry_out(self, command: Command) -> None:
        match command:
            case SpawnProcess(name=name, generation=generation):
                self._spawn_soon(self.life.slots[name], generation)
            case TerminateProcess(generation=generation):
                if generation in self._processes:
                    self._processes[generation].terminate()
            case KillProcess(generation=generation):
                if generation in self._processes:
                    self._processes[generation].kill()
            case TellDispatcher(message=message):
                self._tell_dispatcher(message)
            case ConnectGateway(generation=generation):
                slot = self.life.of_generation(generation)
                if slot is not None:
                    self._tell_dispatcher(
                        control.AttachGateway(
                            name=slot.name,
                            generation=generation,
                            input_address="",
                            output_address="",
                            tenant=self._tenant(slot.name),
                        )
                    )
            case AnnounceReady():
                self.was_ready = True
            case StopAccepting():
                self._stop_accepting()
            case ExitNode():
                self.ended = command
                self._stop_accepting()

    def _tenant(self, gateway: str) -> TenantSpec:
        planned = self._node.plan.listeners[int(gateway.rpartition("-")[2])]
        return TenantSpec(
            priority=planned.priority,
            weight=planned.weight,
            max_running_requests=planned.max_running,
            max_queued_requests=planned.max_queued,
            queue_timeout_s=planned.queue_timeout_s,
        )

    def _stop_accepting(self) -> None:
        self.accepts = False
        self._node.refuse_waiting()

    def _spawn_soon(self, slot: Slot, generation: Generation) -> None:
        if generation in self._used:
            raise RuleBrokenError("generations are never used twice", f"{slot.name} {generation}")
        self._used.add(generation)
        delay_s = self._node.draw.uniform(0.005, 0.03)
        self._node.queue.after(delay_s, lambda: self._spawn(slot, generation))

    def _spawn(self, slot: Slot, generation: Generation) -> None:
        needs = slot.plan.forkserver
        cause = None
        if needs is not None and self.by_name(needs) is None:
            cause = f"fork server {needs} is not running"
        elif slot.name in self._node.fail_next_start:
            self._node.fail_next_start.discard(slot.name)
            cause = "it was made to fail"
        if cause is not None:
            self.apply(ProcessExited(generation, cause, retryable=True, exit_code=70))
            return
        process = self._node.make_process(slot.name, slot.kind, generation)
        self._processes[generation] = process
        stopping = self.life.of_generation(generation) is not slot or not slot.running
        if stopping:
            process.kill()
        elif slot.kind is ProcessKind.FORKSERVER:
            self.apply(ProcessReady(generation))
        elif slot.kind is ProcessKind.GATEWAY:
            for command in self.life.gateway_spawned(generation):
                self._carry_out(command)

    def _tell_dispatcher(self, message: control.Message) -> None:
        dispatcher = self._node.dispatcher
        slot = self.life.slots[DISPATCHER]
        if dispatcher is None or dispatcher.generation != slot.generation:
            return
        for _ in range(dispatcher.times()):
            dispatcher.from_supervisor.send(message)

    # --------------------------------------------------------------------------- events

    def process_ended(self, process: Process, exit_code: int, cause: str) -> None:
        """See by its pidfd that a process has ended."""
        self._processes.pop(process.generation, None)
        event = ProcessExited(process.generation, cause, retryable=True, exit_code=exit_code)
        self._node.queue.after(self._node.draw.uniform(0.0, 0.002), lambda: self.apply(event))

    def probed(self, process: Process) -> None:
        """Find that a gateway answers HTTP."""
        self.apply(ProcessReady(process.generation))

    def find_sick(self, process: Process, cause: str) -> None:
        """Find that a process makes no progress."""
        self.apply(ProcessSick(process.generation, cause))

    def hear(self, sender: int, message: control.Message) -> None:
        """Take a control message, if its sender may say it."""
        if not self._may_say(sender, message):
            return
        match message:
            case control.WorkerReady():
                self.apply(EngineReady(message))
            case (
                control.DispatcherReady(generation=generation)
                | BlockManagerReady(generation=generation)
            ):
                self.apply(ProcessReady(Generation(generation)))
            case control.WorkerServing(generation=generation):
                self.apply(WorkerRouted(Generation(generation)))
            case control.WorkerDrained(generation=generation):
                self.apply(WorkerEmptied(Generation(generation)))
            case (
                control.WorkerGivenUp(generation=generation, reason=reason)
                | control.GatewayGivenUp(generation=generation, reason=reason)
            ):
                cause = f"given up by the dispatcher: {reason}"
                self.apply(ProcessSick(Generation(generation), cause))
            case control.NodeDrained():
                self.apply(NodeEmptied())
            case _:
                pass

    def _may_say(self, sender: int, message: control.Message) -> bool:
        """Tell whether a child speaks for itself, and the dispatcher for routing."""
        match message:
            case (
                control.WorkerServing()
                | control.WorkerDrained()
                | control.WorkerGivenUp()
                | control.GatewayGivenUp()
                | control.GatewayServing()
                | control.NodeDrained()
            ):
                return sender == self.life.slots[DISPATCHER].generation
            case control.WorkerReady() | control.DispatcherReady() | BlockManagerReady():
                return sender == message.generation
            case _:
                return False

    # ------------------------------------------------------------------------- recovery

    def bring_back(self) -> bool:
        """Do what an operator would: start what is down or has failed; True when all serve."""
        for slot in self.life.slots.values():
            is_worker = slot.kind is ProcessKind.WORKER
            down = slot.life.phase is Phase.DOWN and not slot.wanted
            if slot.life.phase is Phase.FAILED or (is_worker and down):
                self.wish(RestartAsked(slot.name, immediately=not is_worker))
        return all(
            slot.life.phase is Phase.READY and not slot.draining
            for slot in self.life.slots.values()
        )

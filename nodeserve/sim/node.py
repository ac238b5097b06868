"""One simulated node: its processes, clients and faults, and what must hold after each event."""

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import DrainAsked, RestartAsked, RoleAsked, StopAsked
from nodeserve.sim.data_plane import GatewayPort, SimDispatcher
from nodeserve.sim.event_queue import EventQueue
from nodeserve.sim.faults import (
    ARRIVALS_UNTIL_S,
    FAULTS_UNTIL_S,
    Fault,
    FaultKind,
    Plan,
    gateway_name,
)
from nodeserve.sim.gateway import Client, SimGateway
from nodeserve.sim.process import Process, SimBlockManager
from nodeserve.sim.story import RuleBrokenError, Story
from nodeserve.sim.supervisor import SimSupervisor
from nodeserve.sim.worker import SimWorker
from nodeserve.wire import control
from nodeserve.wire.kinds import ProcessKind, Role

SICK_AFTER_S: Final = 1.0
"""How long a worker may stand still before it is found sick."""

HEALED_S: Final = max(ARRIVALS_UNTIL_S, FAULTS_UNTIL_S) + 0.5
"""From here on nothing goes wrong any more, and an operator starts what is down."""

OPERATOR_S: Final = 1.0
ALL_ENDED_WITHIN_S: Final = 120.0
"""After the last fault. The longest delay before a restart is a minute."""

SETTLED_AFTER_S: Final = 1.0
STOPPED_WITHIN_S: Final = 60.0
MAX_EVENTS: Final = 20_000
"""Runs have some 400 of them."""


class SimNode:
    """Everything of one run."""

    def __init__(self, plan: Plan, *, is_told: bool = False) -> None:
        self.plan = plan
        self.queue = EventQueue()
        self.story = Story(self.queue.now_s, is_told=is_told)
        self.draw = random.Random(plan.seed)  # noqa: S311  deterministic by purpose
        self.dispatcher: SimDispatcher | None = None
        self.fail_next_start: set[str] = set()
        self.clients = [Client(planned) for planned in plan.requests]
        self.supervisor = SimSupervisor(self)
        self._planned = {worker.name: worker for worker in plan.workers}
        self._waiting: list[Client] = []
        self._gateways: dict[int, SimGateway] = {}
        self._ports: dict[int, GatewayPort] = {}
        self._touched: dict[SimWorker, None] = {}
        self._lost_a_dispatcher = False
        self._num_events = 0
        self._healed = False
        self._everything_is_back = False

    # ------------------------------------------------------------------------------ run

    def run(self) -> None:
        """Run to the end.

        Raises:
            RuleBrokenError: Something that must hold did not.
        """
        self.supervisor.start()
        for client in self.clients:
            self.queue.at(client.planned.arrive_s, partial(self._arrive, client))
            if client.planned.abort_at_s is not None:
                self.queue.at(client.planned.abort_at_s, partial(self._leave, client))
        for fault in self.plan.faults:
            self.queue.at(fault.at_s, partial(self._strike, fault))
        self.queue.at(HEALED_S, self._heal)
        self._run_until(lambda: self._healed and self._has_recovered(), "nothing waits for ever")
        self._settle()
        self.supervisor.wish(StopAsked())
        self._run_until(lambda: self.supervisor.ended is not None, "a node that is stopped ends")
        left = [str(process) for process in self.supervisor.processes]
        self._require("no process outlives its node", not left, left)

    def _run_until(self, is_over: Callable[[], bool], rule: str) -> None:
        deadline_s = self.queue.now_s() + HEALED_S + ALL_ENDED_WITHIN_S
        while not is_over():
            self._num_events += 1
            on_time = self.queue.now_s() <= deadline_s and self._num_events < MAX_EVENTS
            if not on_time or not self.queue.run_next():
                raise RuleBrokenError(rule, self._describe())
            for worker in self._touched:
                worker.check()
            self._touched.clear()

    def _has_recovered(self) -> bool:
        if self.supervisor.ended is not None:
            return True
        ended = all(client.ending is not None for client in self.clients)
        return ended and self._everything_is_back

    def _settle(self) -> None:
        """Let what is under way arrive; then nothing must be left of any request."""
        if self.supervisor.ended is not None:
            return
        until_s = self.queue.now_s() + SETTLED_AFTER_S
        if self._may_leak:
            # A leg that waited for the room of one lease may leave another one.
            until_s += 2 * (self.plan.lease_ttl_s + SETTLED_AFTER_S)
        self._run_until(
            lambda: self.queue.now_s() >= until_s or self.supervisor.ended is not None,
            "time goes on",
        )
        dispatcher = self.dispatcher
        if dispatcher is None or self.supervisor.ended is not None:
            return
        dispatcher.watch.check_end()
        dispatcher.ports.booked.check_end()
        self._require("nothing is left", not dispatcher.service.desk.legs, "legs")
        for process in self.supervisor.processes:
            fenced = process.generation not in dispatcher.service.workers.attached
            if isinstance(process, SimWorker) and process.engine is not None and not fenced:
                scheduler = process.engine.scheduler
                left = scheduler.num_requests + scheduler.handoffs.num_leases
                self._require("nothing is left", not left, f"{process}: {left} legs or leases")

    @property
    def _may_leak(self) -> bool:
        """Whether leases, and legs that wait for their room, may stay until their time is up."""
        drops = any(fault.kind is FaultKind.DROP for fault in self.plan.faults)
        return self._lost_a_dispatcher or drops

    def _require(self, rule: str, holds: object, detail: object) -> None:
        if not holds:
            raise RuleBrokenError(rule, str(detail))

    def _describe(self) -> str:
        open_ = [client for client in self.clients if client.ending is None]
        waiting = [f"{client} ({len(client.tokens)} tokens)" for client in open_]
        slots = [f"{slot.name} {slot.state()}" for slot in self.supervisor.life.slots.values()]
        return f"waiting: {', '.join(waiting) or 'nobody'}; {', '.join(slots)}"

    # ------------------------------------------------------------------------ processes

    def touched(self, worker: SimWorker) -> None:
        """Look at a worker's engine when this event is over; the router is looked at at once."""
        self._touched[worker] = None

    def make_process(self, name: str, kind: ProcessKind, generation: Generation) -> Process:
        """Make a process of the node."""
        match kind:
            case ProcessKind.WORKER:
                return SimWorker(self, self._planned[name], generation)
            case ProcessKind.GATEWAY:
                gateway = SimGateway(self, name, int(name.rpartition("-")[2]), generation)
                self._gateways[generation] = gateway
                if generation in self._ports:
                    self._ports[generation].connected(gateway)
                return gateway
            case ProcessKind.DISPATCHER:
                self.dispatcher = SimDispatcher(self, name, generation)
                for worker in self._workers():
                    worker.connect_soon()
                return self.dispatcher
            case ProcessKind.BLOCK_MANAGER:
                return SimBlockManager(self, name, generation)
            case (
                ProcessKind.FORKSERVER
                | ProcessKind.SUPERVISOR
                | ProcessKind.MONITOR
                | ProcessKind.LEDGER
            ):
                return Process(self, name, generation)

    def dispatcher_died(self, dispatcher: SimDispatcher) -> None:
        """Break the connections of a dispatcher."""
        self._lost_a_dispatcher = True
        if self.dispatcher is dispatcher:
            self.dispatcher = None
        for worker in self._workers():
            worker.peer_died()

    def worker_of(self, generation: int) -> SimWorker | None:
        """Return a live worker by its generation."""
        return next((w for w in self._workers() if w.generation == generation), None)

    def is_wanted(self, leg_id: str) -> bool:
        """Tell whether the present dispatcher waits for what a leg says."""
        if self.dispatcher is None:
            return False
        service = self.dispatcher.service
        leg = service.desk.legs.get(leg_id)
        return leg is not None and leg.worker.generation in service.workers.attached

    def connect_gateway(self, generation: int, port: GatewayPort) -> None:
        """Connect the dispatcher to a gateway, now or when its process exists."""
        self._ports[generation] = port
        if generation in self._gateways:
            port.connected(self._gateways[generation])

    def _workers(self) -> list[SimWorker]:
        return [p for p in self.supervisor.processes if isinstance(p, SimWorker)]

    def tell_supervisor(self, sender: Process, message: control.Message) -> None:
        """Send a control message of a child; each child's come in order."""
        for _ in range(sender.times()):
            at_s = max(sender.said_s, self.queue.now_s() + sender.under_way_s())
            sender.said_s = at_s
            self.queue.at(at_s, lambda: self.supervisor.hear(sender.generation, message))

    # -------------------------------------------------------------------------- clients

    def _arrive(self, client: Client) -> None:
        self.story.tell(
            "{} arrives: {} prompt tokens, {} to generate",
            client,
            client.planned.prompt_tokens,
            client.planned.max_tokens,
        )
        if not self.supervisor.accepts:
            client.end("refused")
            return
        gateway = self.supervisor.by_name(gateway_name(client.planned.listener))
        if isinstance(gateway, SimGateway) and gateway.is_serving:
            gateway.take(client)
        else:
            self._waiting.append(client)

    def _leave(self, client: Client) -> None:
        if client.ending is not None:
            return
        if client in self._waiting:
            self._waiting.remove(client)
            client.end("aborted")
            return
        gateway = self.supervisor.by_name(gateway_name(client.planned.listener))
        if isinstance(gateway, SimGateway):
            gateway.leave(client)

    def gateway_serves(self, gateway: SimGateway) -> None:
        """Let those in who waited in the listening socket's backlog."""
        mine = [c for c in self._waiting if c.planned.listener == gateway.listener]
        self._waiting = [c for c in self._waiting if c.planned.listener != gateway.listener]
        for client in mine:
            gateway.take(client)

    def refuse_waiting(self) -> None:
        """Refuse those who still wait to connect."""
        for client in self._waiting:
            client.end("refused")
        self._waiting.clear()

    def client_failed(self, client: Client) -> None:
        """Check that somebody decided that a client's request fails."""
        dispatcher = self.dispatcher
        if dispatcher is None:
            return
        dispatcher.watch.num_failed -= 1
        unfounded = dispatcher.watch.num_failed < 0
        self._require("a failure has a cause", not unfounded, f"{client} failed for no reason")

    # --------------------------------------------------------------------------- faults

    def _strike(self, fault: Fault) -> None:
        self.story.tell("FAULT {}", fault)
        match fault.kind:
            case FaultKind.LEAP:
                self.queue.leap(fault.amount)
            case FaultKind.STOP_NODE:
                self.supervisor.wish(StopAsked())
            case FaultKind.FAIL_NEXT_START:
                self.fail_next_start.add(fault.target)
            case FaultKind.DRAIN:
                self.supervisor.wish(DrainAsked(fault.target, force=True))
            case FaultKind.RESTART | FaultKind.RESTART_NOW:
                at_once = fault.kind is FaultKind.RESTART_NOW
                self.supervisor.wish(RestartAsked(fault.target, immediately=at_once))
            case FaultKind.ROLE:
                role = list(Role)[int(fault.amount)]
                self.supervisor.wish(RoleAsked(fault.target, role, force=True))
            case _:
                process = self.supervisor.by_name(fault.target)
                if process is not None:
                    self._strike_process(fault, process)

    def _strike_process(self, fault: Fault, process: Process) -> None:
        match fault.kind:
            case FaultKind.KILL:
                process.kill()
            case FaultKind.DEAF:
                process.deaf_s = fault.amount
            case FaultKind.DELAY:
                process.delay_s = fault.amount
            case FaultKind.REPEAT:
                process.num_repeats = 3
            case FaultKind.DROP:
                process.num_drops = 3
            case _:
                pass
        if isinstance(process, SimGateway) and fault.kind is FaultKind.STUCK:
            process.is_stuck = True
            self.queue.after(fault.amount, process.unstick)
        if isinstance(process, SimWorker):
            self._strike_worker(fault, process)

    def _strike_worker(self, fault: Fault, worker: SimWorker) -> None:
        match fault.kind:
            case FaultKind.SLOW:
                worker.slowness = fault.amount
            case FaultKind.MUTE:
                worker.mute = True
                self.queue.after(fault.amount, lambda: setattr(worker, "mute", False))
            case FaultKind.HANG:
                worker.hangs = True
                self.queue.after(fault.amount, worker.thaw)
                self.queue.after(SICK_AFTER_S, lambda: self._look_for_progress(worker))
            case _:
                pass

    def _look_for_progress(self, worker: SimWorker) -> None:
        if worker.alive and worker.hangs:
            self.supervisor.find_sick(worker, "it makes no step")

    # ------------------------------------------------------------------------- recovery

    def _heal(self) -> None:
        """Let nothing go wrong from here on."""
        self.story.tell("the faults are over")
        self._healed = True
        self.fail_next_start.clear()
        for process in self.supervisor.processes:
            process.deaf_s = process.delay_s = 0.0
            process.num_repeats = process.num_drops = 0
            if isinstance(process, SimWorker):
                process.slowness, process.mute = 1.0, False
                process.thaw()
            if isinstance(process, SimGateway):
                process.unstick()
        self._operate()

    def _operate(self) -> None:
        self._everything_is_back = self.supervisor.bring_back()
        if not self._everything_is_back and self.supervisor.ended is None:
            self.queue.after(OPERATOR_S, self._operate)

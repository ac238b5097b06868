"""The supervisor's loop: hear, hand to the node's life, carry out."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from functools import partial

from nodeserve.bus.channel import ControlServer
from nodeserve.bus.sockets import listen_at
from nodeserve.clock import Clock
from nodeserve.config.diff import compare
from nodeserve.config.node import NodeConfig
from nodeserve.config.release import nodeserve_version
from nodeserve.errors import NodeserveError, PeerError
from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import (
    AnnounceReady,
    Command,
    ConnectGateway,
    Event,
    ExitNode,
    KillProcess,
    NodeStarted,
    ProcessExited,
    ProcessReady,
    SpawnProcess,
    StopAccepting,
    StopAsked,
    TellDispatcher,
    TerminateProcess,
    TimeElapsed,
)
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.slot import Slot
from nodeserve.supervisor.activation import Activated
from nodeserve.supervisor.cgroup import delegated_groups
from nodeserve.supervisor.changes import Changes
from nodeserve.supervisor.children import Child, Children, Exit
from nodeserve.supervisor.chronicle import Chronicle
from nodeserve.supervisor.estate import Estate
from nodeserve.supervisor.exits import Exits, never_born
from nodeserve.supervisor.gateways import Gateways
from nodeserve.supervisor.handover import Handover, release_signals
from nodeserve.supervisor.hearing import BEATS, beaten, event_of, may_say
from nodeserve.supervisor.notify import Notifier
from nodeserve.supervisor.operator_desk import OperatorDesk, Outside
from nodeserve.supervisor.outbox import Outbox
from nodeserve.supervisor.plan import DISPATCHER, LEDGER, slot_plans
from nodeserve.supervisor.reload import SETTLE_EVERY_S, Reload
from nodeserve.supervisor.report import ready_line
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.supervisor.socket_keeper import SocketKeeper
from nodeserve.supervisor.spawn import Run, Spawner
from nodeserve.supervisor.standing import Standing
from nodeserve.supervisor.tier_desk import TierDesk
from nodeserve.supervisor.tier_memory import TierMemory
from nodeserve.supervisor.watch import Watch
from nodeserve.wire import control
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.kv_control import BlockManagerReady
from nodeserve.wire.ledger_control import LedgerEngineGone

_log = logging.getLogger(__name__)


class Supervisor:
    """One node from its start to its end."""

    def __init__(
        self,
        config: NodeConfig,
        runtime: RuntimeDirectory,
        clock: Clock,
        *,
        notifier: Notifier,
        activated: Activated,
        kept: Handover | None = None,
    ) -> None:
        """Bind what is not open yet of the control socket and the listeners; start nothing.

        Raises:
            ConfigError: A listener can't be bound.
            PeerError: A live process holds a socket.
        """
        self._config = config
        self._runtime = runtime
        self._clock = clock
        self._kept = kept
        self._started_s = clock.now_s() if kept is None else kept.started_s
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._life = _life_of(config, kept)
        self._chronicle = Chronicle(self._life)
        self._exits = Exits(self._life, runtime, self._book_exit)
        self._server = ControlServer(_control_socket(runtime, kept))
        self._outbox = Outbox(self._server)
        self._watch = Watch(config, clock, self._events.put_nowait)
        groups = delegated_groups()
        self._children = Children(runtime, self._watch.born, self._on_exit, groups)
        self._standing = Standing(notifier)
        held = () if kept is None else kept.listeners
        self._gateways = Gateways(
            config, self._events.put_nowait, activated, held, busy_s=self._watch.busy_s
        )
        tier = None if kept is None else kept.tier
        self._memory = TierMemory.of(config.tiers, tier)
        gone = () if tier is None else tier.gone
        self._tiers = TierDesk(self._life, self._children.cleared, self._outbox.send, gone=gone)
        self._run = Run.of(None if kept is None else kept.run_id, self._started_s)
        makers = self._children, self._gateways
        self._spawner = Spawner(config, runtime, *makers, self._run, self._memory)
        rollout = Rollout() if kept is None else kept.rollout
        self._desk = OperatorDesk(
            config,
            self._life,
            self._children,
            Outside(self._apply_wish, self._tell_dispatcher, self._reply, self._tiers),
            rollout=rollout,
            started_s=self._started_s,
        )
        self._changes = Changes(
            self._life, rollout, apply=self._apply_wish, tell=self._tell_dispatcher
        )
        wake = partial(self._events.put_nowait, TimeElapsed())
        self._reload = Reload(self._estate(), clock, wake=wake, answer=self._reply)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: ExitNode | None = None

    async def run(self) -> int:
        """Run the node until it is stopped or cannot start; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._events.put_nowait, StopAsked())
        loop.add_signal_handler(signal.SIGHUP, self._hung_up, os.isatty(0))
        release_signals()
        listening = asyncio.create_task(self._listen())
        self._in_background(self._watch.run())
        self._in_background(SocketKeeper(self._runtime, self._life, self._gateways).run())
        self._events.put_nowait(NodeStarted() if self._kept is None else TimeElapsed())
        try:
            while True:
                event = await self._next_event()
                self._apply(event)
                if self._ended is not None:
                    return self._leave(self._ended)
                self._changes.go_on()
                if self._events.empty():
                    if self._reload.is_imminent:
                        self._standing.leaving()
                    self._reload.carry_out()
                if not self._reload.is_under_way:
                    self._standing.reloaded()
                now_s, listens = self._clock.now_s(), not listening.done()
                self._standing.turned(self._life, now_s=now_s, listening=listens)
        finally:
            for task in (listening, *self._tasks):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            self._reload.close()
            self._exits.close()
            self._tiers.close()
            if self._memory is not None:
                self._memory.close()
            self._outbox.close()
            self._gateways.close()
            self._children.close()
            self._server.close()

    async def _next_event(self) -> Event:
        times = [self._life.wake_at_s, self._standing.wake_at_s]
        if self._reload.is_due:
            times.append(self._clock.now_s() + SETTLE_EVERY_S)
        wake_at_s = min((at_s for at_s in times if at_s is not None), default=None)
        wait_s = None if wake_at_s is None else max(0.0, wake_at_s - self._clock.now_s())
        try:
            async with asyncio.timeout(wait_s):
                return await self._events.get()
        except TimeoutError:
            return TimeElapsed()

    def _apply(self, event: Event) -> None:
        """Hand one event to the node's life and carry out what it says."""
        for command in self._life.handle(event, now_s=self._clock.now_s()):
            self._carry_out(command)
        self._chronicle.look(now_s=self._clock.now_s())
        self._desk.look_again()

    def _apply_wish(self, event: Event) -> None:
        """Hand in what an operator wants; the loop then looks at the deadlines it has set."""
        self._apply(event)
        self._events.put_nowait(TimeElapsed())

    def _carry_out(self, command: Command) -> None:
        match command:
            case SpawnProcess(name=name, generation=generation):
                self._in_background(self._spawn(self._life.slots[name], generation))
            case TerminateProcess(generation=generation):
                self._watch.ending(generation)
                self._children.send(generation, signal.SIGTERM)
            case KillProcess(generation=generation):
                self._watch.killed(generation)
                self._children.send(generation, signal.SIGKILL)
            case TellDispatcher(message=message):
                self._tell_dispatcher(message)
            case ConnectGateway(generation=generation):
                slot = self._life.of_generation(generation)
                if slot is not None:
                    self._tell_dispatcher(self._gateways.attach_message(slot.name, generation))
                    self._gateways.begin_probing(slot.name, generation)
            case AnnounceReady():
                took_s = self._clock.now_s() - self._started_s
                print(ready_line(self._config, took_s), flush=True)  # noqa: T201  for people
            case StopAccepting():
                _log.info("node_draining deadline_s=%g", self._config.drain_deadline_s)
                self._gateways.stop_accepting()
            case ExitNode():
                self._ended = command  # the loop leaves, whoever has handed the event in

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _spawn(self, slot: Slot, generation: Generation) -> None:
        """Start one incarnation; what goes wrong becomes its exit."""
        _log.debug("process_starting name=%s generation=%d", slot.name, generation)
        try:
            await self._children.cleared(slot.name)
            await self._spawner.spawn(slot.plan, generation)
        except Exception as error:  # noqa: BLE001  whatever it is, the node's life must hear of it
            if not isinstance(error, NodeserveError | OSError):
                _log.exception("process_not_started name=%s", slot.name)
            if self._children.get(generation) is None:
                self._events.put_nowait(never_born(generation, error))
            return
        is_wanted = slot.life.phase in (Phase.STARTING, Phase.READY)
        if not is_wanted or self._life.of_generation(generation) is not slot:
            # It was told to end when it did not exist yet, and has not heard it.
            self._children.send(generation, signal.SIGKILL)
        elif slot.kind is ProcessKind.FORKSERVER:
            self._events.put_nowait(ProcessReady(generation))
        elif slot.kind is ProcessKind.GATEWAY:
            for command in self._life.gateway_spawned(generation):
                self._carry_out(command)

    def _on_exit(self, child: Child, ended: Exit) -> None:
        self._watch.gone(child.generation)
        self._exits.ended(child, ended)

    def _book_exit(self, event: ProcessExited) -> None:
        slot = self._life.of_generation(event.generation)
        if slot is not None and slot.kind is ProcessKind.GATEWAY:
            self._gateways.forget(slot.name, slot.generation)
        if slot is not None and slot.kind is ProcessKind.WORKER:
            self._tiers.worker_ended(slot.name, slot.generation)
            if (ledger := self._life.slots.get(LEDGER)) is not None:
                gone = LedgerEngineGone(generation=event.generation)
                self._reply(str(ledger.generation).encode(), gone)
        self._events.put_nowait(event)
        self._runtime.forget(event.generation)

    def _tell_dispatcher(self, message: control.Message) -> None:
        slot = self._life.slots[DISPATCHER]
        try:
            self._outbox.send(str(slot.generation).encode(), message)
        except PeerError as error:
            _log.warning("dispatcher_unreachable %s", error)

    def _leave(self, ended: ExitNode) -> int:
        self._standing.ended(ended.reason)
        if ended.reason is not None:
            print(f"error: {ended.reason}", file=sys.stderr)  # noqa: T201  for people
            print(f"logs: {self._runtime.log_dir}", file=sys.stderr)  # noqa: T201
        else:
            _log.info("node_stopped")
        return ended.exit_code

    # ----------------------------------------------------------------------- reload

    def _estate(self) -> Estate:
        return Estate(
            config=self._config,
            runtime=self._runtime,
            life=self._life,
            server=self._server,
            outbox=self._outbox,
            children=self._children,
            gateways=self._gateways,
            desk=self._desk,
            tier_desk=self._tiers,
            memory=self._memory,
            changes=self._changes,
            causes=self._exits.causes,
            run_id=self._run.run_id,
            started_s=self._started_s,
            num_reloads=0 if self._kept is None else self._kept.num_reloads,
        )

    def go_on(self, kept: Handover) -> None:
        """Take up what the program before this one left; call it before ``run``."""
        self._estate().take_up(kept)
        for slot in self._life.slots.values():
            if slot.kind is ProcessKind.FORKSERVER and slot.life.phase is Phase.STARTING:
                self._in_background(self._wait_until_loaded(slot))
        self._reload.ask_what_was_missed()
        _, change = compare(kept.before or kept.config, kept.config)
        installed = nodeserve_version()
        servers = kept.children.forkservers
        outdated = [one.name for one in servers if one.version not in ("", installed)]
        self._changes.begin(change, kept.config, outdated=outdated)
        if kept.asked_again:
            self._reload.ask(None)
        number = len(kept.children.children)
        _log.info("supervisor_reloaded version=%s reloads=%d", installed, kept.num_reloads)
        if kept.asked_by is not None:
            detail = f"reloaded: nodeserve {installed} goes on with its {number} processes"
            said = "\n".join([detail, *(f"  {line}" for line in change.lines())])
            self._reply(kept.asked_by, control.CommandReply(detail=said))

    def _hung_up(self, has_terminal: bool) -> None:  # noqa: FBT001  (a fact, of the signal)
        if has_terminal:
            self._events.put_nowait(StopAsked())
        else:
            self._ask_to_reload(None)

    def _ask_to_reload(self, asked_by: bytes | None, *, dry_run: bool = False) -> None:
        self._standing.reloading()
        self._reload.ask(asked_by, dry_run=dry_run)
        self._events.put_nowait(TimeElapsed())

    async def _wait_until_loaded(self, slot: Slot) -> None:
        generation = slot.generation
        with contextlib.suppress(PeerError):  # its exit is heard of as well
            await self._children.loaded(slot.name)
            self._events.put_nowait(ProcessReady(generation))

    # ---------------------------------------------------------------------- control

    async def _listen(self) -> None:
        while True:
            identity, message = await self._server.recv()
            try:
                self._hear(identity, message)
            except Exception:  # noqa: BLE001  one bad message must not stop the node
                _log.exception("control_message_failed kind=%s", type(message).__name__)

    def _hear(self, identity: bytes, message: control.Message) -> None:
        if not may_say(identity, message, self._life.slots):
            _log.warning(
                "control_message_refused from=%s kind=%s", identity, type(message).__name__
            )
            return
        if (event := event_of(message)) is not None:
            self._events.put_nowait(event)
            if isinstance(message, BlockManagerReady):
                self._tiers.manager_ready(message.generation)
            return
        if isinstance(message, BEATS):
            self._watch.heard(message)
            slot = self._life.of_generation(Generation(message.generation))
            if slot is not None and beaten(slot, message):
                self._reply(identity, control.SayAgain())
            return
        match message:
            case control.WorkerProgress(generation=generation, phase=phase):
                if (slot := self._life.of_generation(generation)) is not None:
                    slot.detail = phase
                    _log.info("worker_starting name=%s phase=%r", slot.name, phase)
            case control.ChildFailed():
                self._exits.said(message)
            case control.GatewayServing(generation=generation):
                if (slot := self._life.of_generation(generation)) is not None:
                    self._gateways.said_to_serve(slot.name, slot.generation)
            case control.ReloadRequest():
                self._ask_to_reload(identity, dry_run=message.dry_run)
            case _:
                self._desk.hear(identity, message)

    def _reply(self, identity: bytes, message: control.Message) -> None:
        with contextlib.suppress(PeerError):  # whoever asked has gone away
            self._outbox.send(identity, message)


def _life_of(config: NodeConfig, kept: Handover | None) -> NodeLife:
    patience = Patience(drain_s=config.drain_deadline_s)
    return NodeLife(slot_plans(config), patience, None if kept is None else kept.node)


def _control_socket(runtime: RuntimeDirectory, kept: Handover | None) -> socket.socket:
    if kept is None:
        return listen_at(runtime.address("control"))
    return socket.socket(fileno=kept.control_fd)

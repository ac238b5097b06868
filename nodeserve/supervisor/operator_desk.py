"""Answers what the command line asks: status at once, commands when they are done."""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from nodeserve.config.node import NodeConfig
from nodeserve.config.release import nodeserve_version
from nodeserve.engine.shared_counts import num_turned_away
from nodeserve.errors import NodeserveError
from nodeserve.gateway.launch import counts_path
from nodeserve.lifecycle.messages import (
    DrainAsked,
    Event,
    RestartAsked,
    RoleAsked,
    StopAsked,
)
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.slot import Slot
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor.children import Children
from nodeserve.supervisor.device_desk import DeviceDesk
from nodeserve.supervisor.plan import DISPATCHER
from nodeserve.supervisor.report import first_line
from nodeserve.supervisor.tier_desk import TierDesk
from nodeserve.wire import control
from nodeserve.wire.device_control import DeviceReported, HealthClear
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.kv_control import (
    KvClear,
    KvDone,
    KvPin,
    KvTierStatus,
    KvTierStatusRequest,
    KvUnpin,
)
from nodeserve.wire.status import ProcessStatus, WorkerLoad

_log: Final = logging.getLogger(__name__)

STATUS_DEADLINE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class KeptPromise:
    """A command that is answered when its worker gets where it was sent.

    It may be answered by a later release than it was given to: new fields have defaults.
    """

    worker: str
    since_generation: int
    goal: Phase
    asked_by: bytes


@dataclass(frozen=True, slots=True)
class Outside:
    """Who the desk passes things on to: the node's life, its other parts, and who has asked."""

    apply: Callable[[Event], None]
    tell: Callable[[control.Message], None]
    answer: Callable[[bytes, control.Message], None]
    tiers: TierDesk


class OperatorDesk:
    """The supervisor's side of `nodeserve status`, `drain`, `restart`, `role` and `kv`."""

    def __init__(
        self,
        config: NodeConfig,
        life: NodeLife,
        children: Children,
        outside: Outside,
        *,
        rollout: Rollout,
        started_s: float,
    ) -> None:
        self._config = config
        self._life = life
        self._children = children
        self._apply = outside.apply
        self._tell = outside.tell
        self._answer = outside.answer
        self._tiers = outside.tiers
        self._devices = DeviceDesk(life, apply=outside.apply, answer=outside.answer)
        self._loop = asyncio.get_running_loop()
        self._rollout = rollout
        self._started_s = started_s
        self._version = nodeserve_version()  # of the code that runs; the one on disk may change
        self.promises: list[KeptPromise] = []
        self._status_calls: dict[int, asyncio.Future[control.DispatcherStatus]] = {}
        self._last_call = 0
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def is_answering(self) -> bool:
        """Whether somebody is about to be answered."""
        return bool(self._answering)

    def hear(self, asked_by: bytes, message: control.Message) -> None:
        """Take a message of the command line, or of the dispatcher answering for it."""

        def reply(answer: control.Message) -> None:
            self._answer(asked_by, answer)

        match message:
            case control.DispatcherStatus():
                self._heard_requests(message)
            case KvTierStatus() | KvDone():
                self._tiers.heard(message)
            case KvTierStatusRequest() | KvClear() | KvPin() | KvUnpin():
                _log.debug("operator_asks command=kv what=%s", message)
                self._tiers.ask(message, reply)
            case DeviceReported() | HealthClear():
                self._devices.hear(asked_by, message)
            case control.StatusRequest():
                task = asyncio.create_task(self._answer_status(reply))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case control.DrainRequest(worker=None):
                _log.info("operator_asks command=drain worker=all")
                reply(control.CommandReply(detail="the node drains and then ends"))
                self._apply(StopAsked())
            case control.DrainRequest(worker=str(name), force=force):
                _log.info("operator_asks command=drain worker=%s force=%s", name, force)
                self._promise(name, Phase.DOWN, DrainAsked(name, force), asked_by)
            case control.RestartRequest(worker=name, immediately=immediately):
                _log.info("operator_asks command=restart worker=%s now=%s", name, immediately)
                self._promise(name, Phase.READY, RestartAsked(name, immediately), asked_by)
            case control.RoleRequest(worker=name, role=role, force=force):
                _log.info("operator_asks command=role worker=%s role=%s", name, role)
                if self._try(RoleAsked(name, role, force), reply):
                    reply(control.CommandReply(detail=f"{name} is now used for {role}"))
            case _:
                kind = type(message).__name__
                reply(control.CommandReply(error=f"a {kind} is not for the supervisor"))

    def look_again(self) -> None:
        """Answer every command whose worker got where it was sent, or cannot get there."""
        for promise in list(self.promises):
            reply = self._outcome(promise)
            if reply is not None:
                self.promises.remove(promise)
                self._answer(promise.asked_by, reply)

    def _outcome(self, promise: KeptPromise) -> control.CommandReply | None:
        """Return how a command ended; None while that is open."""
        slot = self._life.slots.get(promise.worker)
        if slot is None:
            gone = f"{promise.worker} is no worker of this node any more"
            return control.CommandReply(error=gone)
        phase = slot.life.phase
        moved = slot.generation != promise.since_generation
        failed = None
        if phase is Phase.FAILED:
            failed = f"{slot.name} failed: {slot.detail}"
        elif promise.goal is Phase.DOWN:
            if phase is Phase.DOWN:
                hint = f"`nodeserve restart {slot.name}` brings it back"
                return control.CommandReply(detail=f"{slot.name} is drained and down; {hint}")
            if moved:
                failed = f"{slot.name} was asked to start again before it was down"
        elif phase is Phase.READY and moved:
            return control.CommandReply(
                detail=f"{slot.name} is ready, generation {slot.generation}"
            )
        elif phase is Phase.DOWN and not slot.may_run:
            failed = f"{slot.name} was drained before it was ready"
        elif self._life.phase not in (NodePhase.STARTING, NodePhase.READY):
            failed = f"{slot.name} does not start again: the node is {self._life.phase}"
        return None if failed is None else control.CommandReply(error=failed)

    def _promise(self, name: str, goal: Phase, event: Event, asked_by: bytes) -> None:
        slot = self._life.slots.get(name)
        before = 0 if slot is None else slot.generation
        was_down = slot is not None and slot.life.phase is Phase.DOWN
        if not self._try(event, partial(self._answer, asked_by)) or slot is None:
            return
        if was_down and goal is Phase.DOWN:
            detail = f"{name} is drained already, and down"
            self._answer(asked_by, control.CommandReply(detail=detail))
            return
        self.promises.append(KeptPromise(name, before, goal, asked_by))
        self.look_again()

    def _try(self, event: Event, reply: Callable[[control.Message], None]) -> bool:
        try:
            self._apply(event)
        except NodeserveError as error:
            reply(control.CommandReply(error=str(error), exit_code=error.exit_code))
            return False
        return True

    # ------------------------------------------------------------------------- status

    async def _answer_status(self, reply: Callable[[control.Message], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            kv = tasks.create_task(self._tiers.status(STATUS_DEADLINE_S))
            requests = await self._requests()
        reply(self._status(requests, kv.result()))

    async def _requests(self) -> control.DispatcherStatus | None:
        """Return the dispatcher's account; None where it does not answer in time."""
        if self._life.slots[DISPATCHER].life.phase is not Phase.READY:
            return None
        self._last_call += 1
        call_id = self._last_call
        answer: asyncio.Future[control.DispatcherStatus] = self._loop.create_future()
        self._status_calls[call_id] = answer
        self._tell(control.ReportStatus(call_id=call_id))
        try:
            async with asyncio.timeout(STATUS_DEADLINE_S):
                return await answer
        except TimeoutError:
            self._status_calls.pop(call_id, None)
            return None

    def _heard_requests(self, account: control.DispatcherStatus) -> None:
        waiting = self._status_calls.pop(account.call_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(account)

    def _status(
        self, requests: control.DispatcherStatus | None, kv: KvTierStatus | None
    ) -> control.StatusReply:
        loads = {} if requests is None else {load.generation: load for load in requests.workers}
        slots = self._life.slots.values()
        return control.StatusReply(
            state=self._life.state,
            socket=self._own_socket(),
            version=self._version,
            vllm_version=self._vllm_version(),
            model=self._config.model,
            served_model_name=self._config.served_model_names[0],
            uptime_s=round(self._loop.time() - self._started_s, 3),
            listeners=tuple(listener.address for listener in self._config.listeners),
            processes=(
                self._supervisor(),
                *(self._process(slot, loads.get(slot.generation)) for slot in slots),
            ),
            requests=None if requests is None else self._with_turned_away(requests),
            detail=self._life.detail,
            simulate=self._config.simulate,
            kv=kv,
            reloading=tuple(self._rollout.left(self._life.slots)),
            reload_halted=self._rollout.halted,
            devices=self._devices.devices,
            findings=self._devices.findings,
        )

    def _with_turned_away(self, requests: control.DispatcherStatus) -> control.DispatcherStatus:
        """Add what only gateways know: the requests that they did not take."""
        runtime_dir = Path(self._config.runtime_dir)
        counts = {
            listener.name: num_turned_away(counts_path(runtime_dir, listener))
            for listener in self._config.listeners
        }
        loads = tuple(
            msgspec.structs.replace(load, turned_away=counts.get(load.name, 0))
            for load in requests.listeners
        )
        return msgspec.structs.replace(requests, listeners=loads)

    def _own_socket(self) -> str:
        sockets = (listener.socket for listener in self._config.listeners if listener.socket)
        return next(sockets, "")

    def _vllm_version(self) -> str | None:
        workers = (slot.ready for slot in self._life.slots.values() if slot.ready is not None)
        return next((ready.fields.vllm_version for ready in workers), None)

    def _supervisor(self) -> ProcessStatus:
        return ProcessStatus(
            name="supervisor",
            kind=ProcessKind.SUPERVISOR,
            state=str(Phase.READY),
            pid=os.getpid(),
            version=self._version,
            uptime_s=round(self._loop.time() - self._started_s, 3),
        )

    def _process(self, slot: Slot, load: WorkerLoad | None) -> ProcessStatus:
        child = self._children.get(slot.generation)
        uptime_s = 0.0 if child is None else self._loop.time() - child.started_s
        ready = slot.life.phase is Phase.READY
        return ProcessStatus(
            name=slot.name,
            kind=slot.kind,
            state=slot.state(),
            generation=slot.generation,
            pid=None if child is None else child.pid,
            role=slot.role if slot.kind is ProcessKind.WORKER else None,
            uptime_s=round(uptime_s, 3),
            restarts=slot.restarts,
            detail=slot.fence or (None if ready else first_line(slot.detail)),
            load=load,
            version="" if child is None else self._children.version_of(child),
            tp=next((w.tp for w in self._config.workers if w.name == slot.name), None),
        )

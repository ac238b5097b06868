"""The dispatcher as a whole: its ports, its control messages and its clock."""

import asyncio
import contextlib
import itertools
import logging
from typing import Any, Final

import msgspec

from nodeserve.clock import Clock
from nodeserve.dispatcher import told
from nodeserve.dispatcher.codecs import Codecs
from nodeserve.dispatcher.desk import RequestDesk
from nodeserve.dispatcher.gateway_link import GatewayLink
from nodeserve.dispatcher.kv_events import KvEventFeed
from nodeserve.dispatcher.kv_paths import KvPaths
from nodeserve.dispatcher.ports import Ports, Timer
from nodeserve.dispatcher.reports import Reports
from nodeserve.dispatcher.status import build_status
from nodeserve.dispatcher.steps import Steps
from nodeserve.dispatcher.traces import Traces
from nodeserve.dispatcher.utilities import Utilities
from nodeserve.dispatcher.worker_link import Worker, WorkerTable, node_ready
from nodeserve.errors import InvariantError, PeerError
from nodeserve.ids import Generation
from nodeserve.router.messages import (
    NodeDraining,
    RoleChanged,
    SettingsChanged,
    TimeElapsed,
    WorkerAttached,
)
from nodeserve.router.router import Router
from nodeserve.wire import control
from nodeserve.wire.engine_core import ABORT, ADD, UTILITY
from nodeserve.wire.spawn import DispatcherSpec

_LOG: Final = logging.getLogger(__name__)

TICK_S: Final = 0.1
"""How late a utility's deadline, a stall or a gauge may be noticed."""

HEARTBEAT_TICKS: Final = 5

STALL_S: Final = 2.0
"""How long all engines wait for a gateway that does not read, before it is given up."""


class Dispatcher:
    """One node's data plane: ``run`` until cancelled, or be told by ``obey`` and ``tick``."""

    def __init__(self, spec: DispatcherSpec, clock: Clock, ports: Ports) -> None:
        """Open the worker-side ports.

        Raises:
            ConfigError: An address cannot be used.
            PeerError: An address is in use.
        """
        self._spec = spec
        self._clock = clock
        self._ports = ports
        self._control = ports.supervisor()
        self._reports = Reports(self._control)
        self._gateways: dict[int, GatewayLink] = {}
        self._draining: set[Generation] = set()
        self._feeds: dict[int, KvEventFeed] = {}
        self._wake: Timer | None = None
        self.traces = Traces(told.bookings(spec, clock, ports))
        self.router = Router(told.router_config(spec))
        self.workers = WorkerTable(ports, self._on_attached)
        self.utilities = Utilities(
            self._ask, self._answer, spec.utility_deadline_s, dispatcher=spec.generation
        )
        self.desk = RequestDesk(
            self.router, self.workers, self.utilities, self.traces, clock, outside=self
        )
        self.desk.names_listeners = spec.names_listeners
        self.kv_paths = KvPaths(self.desk, spec.min_bandwidth_gbps)
        self.steps = Steps(self.desk, self._gateways, self.utilities, self.push)
        self._outputs = ports.outputs(self.steps.take, self.steps.flush)

    async def run(self, pid: int) -> None:
        """Serve until cancelled. ``pid`` is what the supervisor is told."""
        self.report(control.DispatcherReady(generation=self._spec.generation, pid=pid))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_control_messages())
            tasks.create_task(self._tick_forever())

    def close(self) -> None:
        """Close every socket. Gateways are left to the supervisor: nothing is said to them."""
        if self._wake is not None:
            self._wake.cancel()
        for feed in self._feeds.values():
            feed.close()
        for gateway in self._gateways.values():
            gateway.close()
        self.traces.bookings.close()
        self._outputs.close()
        self.workers.close()
        self._control.close()
        self._ports.close()

    # --------------------------------------------------------- what the desk needs of us

    @property
    def generation(self) -> int:
        """Which of the node's dispatchers this is."""
        return self._spec.generation

    def report(self, message: control.Message) -> None:
        """Tell the supervisor what stays true until its worker or gateway is gone."""
        self._reports.send(message)

    def wake_at(self, at_s: float) -> None:
        """Hand in TimeElapsed at ``at_s``."""
        if self._wake is not None:
            self._wake.cancel()
        delay_s = max(0.0, at_s - self._clock.now_s())
        self._wake = self._ports.call_later(delay_s, lambda: self.desk.tell(TimeElapsed()))

    def give_up(self, worker: Worker, cause: str) -> None:
        """Retire a worker that takes no message any more."""
        _LOG.error("worker_given_up worker=%s cause=%s", worker.name, cause)
        self._retire(worker.generation)
        self.report(control.WorkerGivenUp(generation=worker.generation, reason=cause))

    def send(self, gateway: GatewayLink, message: list[Any], aux: list[bytes]) -> None:
        """Send to a gateway, behind what was posted for it."""
        gateway.post(message, aux)
        self.push(gateway)

    def push(self, gateway: GatewayLink) -> None:
        """Send what was posted. Who does not read stops the engines, but not for long."""
        if gateway.generation not in self._gateways:
            return
        try:
            gateway.push()
        except PeerError as error:
            self._give_up_gateway(gateway, str(error))
            return
        if gateway.congested and gateway.congested_since_s is None:
            gateway.congested_since_s = self._clock.now_s()
            self._outputs.pause()

    # -------------------------------------------------------------------------- gateways

    def _on_gateway_message(self, gateway: GatewayLink, frames: list[bytes]) -> None:
        kind, payload = frames[0], frames[1:]
        if kind == ADD:
            self.desk.add(gateway, payload)
        elif kind == ABORT:
            self.desk.abort(gateway, payload)
        elif kind == UTILITY and payload:
            try:
                workers = list(self.workers.attached.values())
                self.utilities.call(gateway, payload, workers, now_s=self._clock.now_s())
            except ValueError:
                self.traces.counters.rejected_frames += 1
        else:
            self.traces.counters.rejected_frames += 1

    def _on_drained(self, gateway: GatewayLink) -> None:
        gateway.congested_since_s = None
        self._resume_engines()

    def _resume_engines(self) -> None:
        if not any(gateway.congested for gateway in self._gateways.values()):
            self._outputs.resume()

    def _end_gateway(self, gateway: GatewayLink, cause: str) -> None:
        """Forget a gateway; what its clients wait for ends with its sockets."""
        _LOG.warning("gateway_detached gateway=%s cause=%s", gateway.name, cause)
        self._gateways.pop(gateway.generation, None)
        self.utilities.gateway_gone(gateway)
        self.desk.gateway_gone(gateway)
        gateway.close()
        self._resume_engines()

    def _give_up_gateway(self, gateway: GatewayLink, cause: str) -> None:
        self._end_gateway(gateway, cause)
        self.report(control.GatewayGivenUp(generation=gateway.generation, reason=cause))

    def _greet(self) -> None:
        """Tell gateways that wait that their engine is ready, once the node can serve.

        Any worker can serve by itself; others that are on their way already are waited for, so
        that what gateways are told is of the whole node.
        """
        workers = list(self.workers.attached.values())
        if not workers or self.workers.num_awaited:
            return
        for gateway in self._gateways.values():
            if not gateway.serving:
                gateway.say_ready(node_ready(workers))
            if gateway.serving and not gateway.announced:
                gateway.announced = True
                self.report(control.GatewayServing(generation=gateway.generation))

    def _answer(
        self, gateway: GatewayLink, call_id: int, failure: str | None, result: object
    ) -> None:
        if self.desk.codecs is not None:
            now_s = self._clock.now_s()
            message = self.desk.codecs.outputs.utility_answer(call_id, failure, result, now_s)
            self.send(gateway, message, [])

    # --------------------------------------------------------------------------- workers

    def _ask(self, worker: Worker, payload: bytes, aux: list[bytes]) -> None:
        if worker.generation in self.workers.attached:
            self.desk.send_worker(worker, UTILITY, payload, aux)

    def _on_attached(self, worker: Worker) -> None:
        ready = worker.attached.ready
        self.desk.block_size = max(1, ready.block_size)
        attached = self.workers.attached.values()
        self.desk.max_model_len = min(one.attached.ready.max_model_len for one in attached)
        self.steps.loads.stats.joined(worker.gauges)
        if ready.kv_events_endpoint is not None:
            self._feeds[worker.generation] = KvEventFeed(
                self._ports,
                ready.kv_events_endpoint,
                worker.generation,
                ready.num_gpu_blocks,
                self.desk.tell,
            )
        max_num_seqs = worker.ready.get("max_num_seqs")
        self.desk.tell(
            WorkerAttached(
                generation=worker.generation,
                role=worker.role,
                num_blocks=ready.num_gpu_blocks,
                block_size=max(1, ready.block_size),
                max_num_seqs=max_num_seqs if isinstance(max_num_seqs, int) else 1,
                draining=worker.generation in self._draining,
                max_model_len=ready.max_model_len,
            )
        )
        self.report(control.WorkerServing(generation=worker.generation))
        self._greet()

    def _attach(self, message: control.AttachWorker) -> None:
        if message.draining:
            self._draining.add(Generation(message.generation))
        fields = message.ready.fields
        try:
            codecs = self.desk.codecs or Codecs(fields, self._spec.grammar_backend)
            if codecs.fields != fields:
                self._refuse(
                    message,
                    f"its wire is that of vLLM {fields.vllm_version}, the node's that of"
                    f" {codecs.fields.vllm_version}; restart the whole node",
                )
                return
            self.desk.codecs = codecs
            self.workers.attach(message)
        except (ValueError, PeerError) as error:
            self._refuse(message, str(error))
        except InvariantError as error:
            _LOG.error("attach_ignored worker=%s cause=%s", message.name, error)

    def _refuse(self, message: control.AttachWorker, cause: str) -> None:
        _LOG.error("worker_refused worker=%s cause=%s", message.name, cause)
        self.report(control.WorkerGivenUp(generation=message.generation, reason=cause))

    def _retire(self, generation: int) -> None:
        """Fence a worker's generation: nothing is sent to it, nothing it says counts."""
        self._draining.discard(Generation(generation))
        worker = self.workers.retire(generation)
        feed = self._feeds.pop(generation, None)
        if feed is not None:
            feed.close()
        if worker is not None:
            self.steps.loads.stats.left(worker.gauges)
            self.utilities.worker_gone(worker)
            self.kv_paths.forget(worker.generation)

    # --------------------------------------------------------------------------- control

    async def _take_control_messages(self) -> None:
        while True:
            message = await self._control.recv()
            self.obey(message)

    def obey(self, message: control.Message) -> None:
        """Carry out a control message of the supervisor."""
        match message:
            case control.AttachWorker():
                self._attach(message)
            case control.DetachWorker():
                _LOG.info("worker_detached generation=%d", message.generation)
                self._reports.forget(message.generation)
                self._retire(message.generation)
                self.desk.lose(Generation(message.generation))
                self._greet()
            case control.SetWorkerRole():
                worker = self.workers.find(message.generation)
                if worker is not None:
                    worker.role = message.role
                    self.kv_paths.forget(worker.generation)
                    self.desk.tell(RoleChanged(worker.generation, message.role))
            case control.DrainWorker():
                self._draining.add(Generation(message.generation))
                self.desk.drain(Generation(message.generation))
            case control.AttachGateway():
                self._attach_gateway(message)
            case control.DetachGateway():
                self._reports.forget(message.generation)
                gateway = self._gateways.get(message.generation)
                if gateway is not None:
                    self._end_gateway(gateway, "the supervisor said so")
            case control.DrainNode() | control.SetRouting():
                self._obey_for_node(message)
            case control.SayAgain():
                self._reports.say_again()
            case control.ReportStatus():
                self._control.send(self._status(message.call_id))
            case _:
                self.traces.counters.rejected_frames += 1

    def _obey_for_node(self, message: control.DrainNode | control.SetRouting) -> None:
        if isinstance(message, control.DrainNode):
            self.desk.tell(NodeDraining())
            return
        self.desk.names_listeners = message.names_listeners
        self.kv_paths.min_gbps = message.min_bandwidth_gbps
        self.desk.tell(SettingsChanged(message.local_prefill_tokens, message.max_queued_requests))

    def _attach_gateway(self, message: control.AttachGateway) -> None:
        if message.generation not in self._gateways:
            self.desk.tell(told.listener(message))
            self._gateways[message.generation] = GatewayLink(
                self._ports, message, self._on_gateway_message, self._on_drained
            )
            self._greet()

    def _status(self, call_id: int) -> control.DispatcherStatus:
        rejected = (
            self.workers.rejected_frames
            + self._control.num_bad_frames
            + sum(feed.num_rejected for feed in self._feeds.values())
        )
        status = build_status(
            call_id,
            self.workers.attached,
            self.router,
            self.traces,
            other_rejected_frames=rejected,
            now_s=self._clock.now_s(),
        )
        return msgspec.structs.replace(status, kv_paths=self.kv_paths.found())

    async def _tick_forever(self) -> None:
        next_s = HEARTBEAT_TICKS * TICK_S
        heartbeat = control.DispatcherHeartbeat(generation=self.generation, next_s=next_s)
        for number in itertools.count():
            if number % HEARTBEAT_TICKS == 0:
                with contextlib.suppress(PeerError):  # the supervisor is stuck: who would care
                    self._control.send(heartbeat)
            await asyncio.sleep(TICK_S)
            self.tick()

    def tick(self) -> None:
        """Do what has time; call it every ``TICK_S``."""
        now_s = self._clock.now_s()
        self.utilities.expire(now_s=now_s)
        self.kv_paths.look()
        self.traces.bookings.tick()
        for gateway in list(self._gateways.values()):
            since_s = gateway.congested_since_s
            if since_s is not None and now_s - since_s > STALL_S:
                self._give_up_gateway(gateway, f"it has not read for {STALL_S:g} s")
        for generation in tuple(self._draining):
            self.desk.count_answers(generation)
        self.steps.loads.catch_up()

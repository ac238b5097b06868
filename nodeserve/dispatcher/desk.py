"""The requests in flight: takes them in, carries out what the router decides, books their ends."""

import logging
from collections import deque
from typing import Any, Final, Protocol, assert_never

from nodeserve.clock import Clock
from nodeserve.dispatcher.codecs import Codecs
from nodeserve.dispatcher.gateway_link import GatewayLink
from nodeserve.dispatcher.orphans import Orphans, request_id
from nodeserve.dispatcher.records import ClientRequest, Leg
from nodeserve.dispatcher.traces import Traces
from nodeserve.dispatcher.utilities import Then, Utilities
from nodeserve.dispatcher.worker_link import Worker, WorkerTable
from nodeserve.errors import InvariantError, PeerError
from nodeserve.ids import BlockHash, Generation, LegId, RequestId
from nodeserve.kv.block_hash import hash_blocks, root_seed
from nodeserve.router.messages import (
    AbortLeg,
    AnswersCounted,
    Command,
    Event,
    FailRequest,
    LegKind,
    ReleaseLease,
    ReportDrained,
    ReportNodeDrained,
    RequestAborted,
    RequestArrived,
    StartLeg,
    WakeAt,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.wire.codec import encode
from nodeserve.wire.control import NodeDrained, WorkerDrained
from nodeserve.wire.engine_core import ABORT, ADD, AddRequest, decode_abort, name_listener
from nodeserve.wire.engine_outputs import ERROR

_LOG: Final = logging.getLogger(__name__)


class Deciding(Protocol):
    """The router, as seen from here."""

    def handle(self, event: Event, *, now_s: float) -> list[Command]:
        """Apply one event and return what must now be done."""
        ...


class Outside(Protocol):
    """What the desk needs from the process around it."""

    @property
    def generation(self) -> int:
        """The dispatcher's generation."""
        ...

    def report(self, message: WorkerDrained | NodeDrained) -> None:
        """Tell the supervisor."""
        ...

    def wake_at(self, at_s: float) -> None:
        """Hand in TimeElapsed at ``at_s``."""
        ...

    def give_up(self, worker: Worker, cause: str) -> None:
        """Retire a worker that takes no message any more."""
        ...

    def send(self, gateway: GatewayLink, message: list[Any], aux: list[bytes]) -> None:
        """Send to a gateway, or end it."""
        ...


class RequestDesk:
    """Every request in flight, and every leg.

    Attributes:
        legs: By the ids that engines know; the hot path looks in here.
        codecs: Set when the first worker is attached; no gateway speaks before that.
        names_listeners: Whether engines are told which listener a request came through.
        workers: The attached workers.
        traces: What is counted and remembered.
        clock: What all of the dispatcher takes the time from.
    """

    def __init__(
        self,
        router: Deciding,
        workers: WorkerTable,
        utilities: Utilities,
        traces: Traces,
        clock: Clock,
        outside: Outside,
    ) -> None:
        self.legs: dict[str, Leg] = {}
        self.codecs: Codecs | None = None
        self.block_size = 1
        self.max_model_len = 1
        self.names_listeners = False
        self._router = router
        self.workers = workers
        self._utilities = utilities
        self.traces = traces
        self.clock = clock
        self._outside = outside
        self._requests: dict[RequestId, ClientRequest] = {}
        self._orphans = Orphans(outside.generation)
        self._num_requests = 0
        self._events: deque[Event] = deque()
        self._telling = False

    def tell(self, event: Event) -> None:
        """Hand an event to the router and carry out what follows from it, to the end.

        What carrying out brings up, such as a worker that cannot be reached, queues behind.
        """
        self._events.append(event)
        if self._telling:
            return
        self._telling = True
        try:
            while self._events:
                event = self._events.popleft()
                for command in self._router.handle(event, now_s=self.clock.now_s()):
                    self._carry_out(command)
        finally:
            self._telling = False

    def ask_worker(self, worker: Worker, method: str, args: list[Any], then: Then) -> None:
        """Call a utility of one worker; ``then`` is called once, also when the worker is lost."""
        self._utilities.ask(worker, method, args, then, now_s=self.clock.now_s())

    # ----------------------------------------------------------------- from the gateways

    def add(self, gateway: GatewayLink, frames: list[bytes]) -> None:
        """Take in a request: ADD's payload and its tensor frames."""
        if self.codecs is None:
            self.traces.counters.rejected_frames += 1
            return
        try:
            add = self.codecs.requests.decode(frames[0])
        except (ValueError, IndexError) as error:
            self._refuse(gateway, frames, error)
            return
        if add.abort_immediately:
            # What it names was stripped: no engine holds anything for it, or would answer.
            self.traces.counters.rejected_frames += 1
            return
        if self.names_listeners:
            name_listener(add, gateway.listener)
        running = gateway.requests.get(add.wire_id)
        if running is not None:
            self._continue(running, add, frames[1:])
            return
        prompt = add.prompt_token_ids
        num_tokens = len(prompt) if prompt is not None else 0
        hashes: tuple[BlockHash, ...] = ()
        if prompt is not None and not add.media:
            seed = root_seed(add.lora_name, add.cache_salt)
            hashes = hash_blocks(prompt, self.block_size, seed)
        add.prompt_token_ids = None
        self._num_requests += 1
        request = ClientRequest(
            request_id=request_id(self._outside.generation, self._num_requests),
            wire_id=add.wire_id,
            gateway=gateway,
            add=add,
            aux=frames[1:],
            prompt_tokens=num_tokens,
            arrived_s=self.clock.now_s(),
            restorable=add.restorable and self.workers.can_resume,
            has_stop_strings=bool(add.sampling and add.sampling.get("stop")),
        )
        gateway.requests[add.wire_id] = request
        self._requests[request.request_id] = request
        room = max(1, self.max_model_len - num_tokens)
        self.tell(
            RequestArrived(
                request_id=request.request_id,
                prompt_tokens=num_tokens,
                max_tokens=room if add.max_tokens is None else min(add.max_tokens, room),
                block_hashes=hashes,
                whole=add.whole,
                restorable=request.restorable,
                priority=add.priority,
                listener=gateway.listener,
            )
        )

    def abort(self, gateway: GatewayLink, frames: list[bytes]) -> None:
        """Take in an ABORT: clients that went away, and stop strings."""
        try:
            wire_ids = decode_abort(frames[0])
        except (ValueError, IndexError):
            self.traces.counters.rejected_frames += 1
            return
        for wire_id in wire_ids:
            request = gateway.requests.get(wire_id)
            if request is not None:
                self._abort(request)

    def gateway_gone(self, gateway: GatewayLink) -> None:
        """Abort all that a gateway's clients had asked for."""
        for request in list(gateway.requests.values()):
            self._abort(request)

    def _abort(self, request: ClientRequest) -> None:
        # A stop string ends a request this way too; only its gateway knows the difference.
        self.forget(request)
        self.traces.finished(request, "abort", now_s=self.clock.now_s())
        self.tell(RequestAborted(request.request_id, request.output_tokens))

    def _refuse(self, gateway: GatewayLink, frames: list[bytes], error: Exception) -> None:
        """Answer a request that cannot be read, if at least its id can."""
        self.traces.counters.rejected_frames += 1
        if self.codecs is None or not frames:
            return
        try:
            wire_id = self.codecs.requests.wire_id(frames[0])
        except ValueError:
            return
        _LOG.warning(
            "request_refused request=%.80s gateway=%s cause=%s", wire_id, gateway.name, error
        )
        if wire_id not in gateway.requests:
            self._fail(gateway, wire_id)

    def _continue(self, request: ClientRequest, add: AddRequest, aux: list[bytes]) -> None:
        """Pass on the next piece of a streaming input; anything else with a used id is dropped."""
        leg = request.leg
        gone = leg is None or leg.worker.generation not in self.workers.attached
        if gone or leg is None or not add.resumable or self.codecs is None:
            self.traces.counters.rejected_frames += 1
            return
        payload = self.codecs.requests.whole_leg(add, leg.leg_id)
        self.send_worker(leg.worker, ADD, payload, aux)

    # ----------------------------------------------------------------------- to workers

    def send_worker(self, worker: Worker, kind: bytes, payload: bytes, aux: list[bytes]) -> None:
        """Send to a worker; one that takes nothing is given up."""
        try:
            self.workers.send(worker, kind, payload, aux)
        except PeerError as error:
            self.give_up(worker, str(error))

    def give_up(self, worker: Worker, cause: str) -> None:
        """Fence a worker that has not died, and let its requests go on elsewhere."""
        self._outside.give_up(worker, cause)
        self.lose(worker.generation)

    def lose(self, generation: Generation) -> None:
        """Let a worker's requests go on elsewhere: it is gone, or fenced."""
        self.count_answers(generation)
        self.tell(WorkerLost(generation))

    def drain(self, generation: Generation) -> None:
        """Move a worker's requests as others have room; ``count_answers`` now and then."""
        self.count_answers(generation)
        self.tell(WorkerDraining(generation))

    def count_answers(self, generation: Generation) -> None:
        """Tell the router how far the answers are that a worker generates."""
        legs = [leg for leg in self.legs.values() if leg.worker.generation == generation]
        if legs:
            self.tell(AnswersCounted({leg.leg_id: len(leg.sent) for leg in legs}))

    def unknown_outputs(self, worker: Worker, leg_ids: list[str]) -> None:
        """Take note of outputs of legs that we do not run; who runs them for nobody stops."""
        orphans = self._orphans.take(worker.generation, leg_ids)
        if orphans:
            _LOG.info("orphans_aborted worker=%s legs=%d", worker.name, len(orphans))
            self.send_worker(worker, ABORT, encode(orphans), [])

    def _carry_out(self, command: Command) -> None:
        match command:
            case StartLeg():
                self._start_leg(command)
            case AbortLeg():
                self._abort_leg(command.leg_id, command.generation)
            case ReleaseLease():
                worker = self.workers.attached.get(command.generation)
                if worker is not None:
                    self._utilities.release(worker, command.lease_id)
            case FailRequest():
                self._fail_request(command)
            case ReportDrained():
                self._outside.report(WorkerDrained(generation=command.generation))
            case ReportNodeDrained():
                self._outside.report(NodeDrained())
            case WakeAt():
                self._outside.wake_at(command.at_s)
            case _:
                assert_never(command)

    def _start_leg(self, command: StartLeg) -> None:
        request = self._requests.get(command.request_id)
        worker = self.workers.attached.get(command.generation)
        if request is None or worker is None:
            return  # retired a moment ago: the router hears of it next
        if request.add is None or self.codecs is None:
            raise InvariantError(f"dispatcher: {command} for a request that has answered; report")
        leg = Leg(
            leg_id=command.leg_id,
            kind=command.kind,
            request=request,
            worker=worker,
            wire_id=request.wire_id,
            batch=request.gateway.batch,
            sent=request.sent,
            role=worker.role,
        )
        self.traces.bookings.leg_began(leg)
        payload = self.codecs.payload(leg, request.add, command.lease_id)
        self._leave(request)
        request.leg = leg
        self.legs[leg.leg_id] = leg
        worker.unstarted[leg.kind] += 1
        if leg.kind is not LegKind.DECODE:
            worker.prompt_tokens += request.prompt_tokens
        if leg.kind is LegKind.PREFILL:
            request.prefill_worker = worker.name
        else:
            request.decode_worker = worker.name
        self.send_worker(worker, ADD, payload, request.aux)

    def _abort_leg(self, leg_id: LegId, generation: Generation) -> None:
        leg = self.legs.get(leg_id)
        if leg is not None:
            self._leave(leg.request)
        worker = self.workers.attached.get(generation)
        if worker is not None:
            self.send_worker(worker, ABORT, encode([leg_id]), [])

    # ------------------------------------------------------------------------------ ends

    def _leave(self, request: ClientRequest) -> None:
        leg = request.leg
        if leg is not None:
            request.leg = None
            self.legs.pop(leg.leg_id, None)
            if leg.started:
                leg.worker.streams.pop(leg.leg_id, None)
            else:
                leg.worker.unstarted[leg.kind] -= 1

    def prefilled(self, leg: Leg) -> None:
        """Note that a prefill leg is over; its request waits for its decode leg."""
        self._leave(leg.request)

    def forget(self, request: ClientRequest) -> None:
        """Take a request out of all tables: nothing more will be sent for it."""
        self._leave(request)
        self._requests.pop(request.request_id, None)
        request.gateway.requests.pop(request.wire_id, None)

    def end(self, request: ClientRequest, finish: str, failure: FailRequest | None = None) -> None:
        """Book the end of a request whose last output goes to its gateway."""
        self.forget(request)
        self.traces.finished(request, finish, failure=failure, now_s=self.clock.now_s())

    def _fail_request(self, command: FailRequest) -> None:
        request = self._requests.get(command.request_id)
        if request is None:
            return
        _LOG.warning(
            "request_failed request=%.80s listener=%s cause=%s",
            request.wire_id,
            request.gateway.listener,
            command.reason,
        )
        self.end(request, "error", command)
        self._fail(request.gateway, request.wire_id)

    def _fail(self, gateway: GatewayLink, wire_id: str) -> None:
        if self.codecs is None:
            return
        codec = self.codecs.outputs
        output = codec.finish(wire_id, ERROR)
        if gateway.batch:
            gateway.batch.append(output)  # behind what this turn has for it already
            return
        self._outside.send(gateway, codec.message([output], None, self.clock.now_s()), [])

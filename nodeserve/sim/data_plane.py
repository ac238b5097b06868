"""A dispatcher process: the one that serves, with queues instead of sockets."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nodeserve.bus.sockets import Frames
from nodeserve.dispatcher.ports import OnMessage
from nodeserve.dispatcher.service import TICK_S, Dispatcher
from nodeserve.errors import PeerError
from nodeserve.ids import Generation
from nodeserve.sim.event_queue import Scheduled
from nodeserve.sim.gateway import SimGateway
from nodeserve.sim.ledger import SimLedger
from nodeserve.sim.links import Link
from nodeserve.sim.process import Process
from nodeserve.sim.watch import RouterWatch
from nodeserve.sim.worker import SimWorker
from nodeserve.wire.control import AttachGateway, DispatcherReady, Message
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.spawn import DispatcherSpec

if TYPE_CHECKING:
    from nodeserve.sim.node import SimNode

OUTPUTS_HELD_BACK: Final = 16
"""How many messages of engines may wait while a gateway does not read."""


class SimPorts:
    """The dispatcher's ``Ports``. Each method that opens one may be called once, as it is.

    Attributes:
        booked: What it has told the ledger.
    """

    num_bad_frames = 0

    def __init__(self, node: "SimNode", owner: "SimDispatcher") -> None:
        self._node = node
        self._owner = owner
        self.booked = SimLedger()
        self._engines: dict[bytes, SimWorker] = {}
        self._outputs: deque[list[bytes]] = deque()
        self._is_paused = False
        self._turn_is_due = False
        self._on_engine: OnMessage
        self._on_output: OnMessage
        self._on_turn_end: Callable[[], None]

    # ----------------------------------------------------------------------- supervisor

    def supervisor(self) -> "SimPorts":
        """Be the control channel as well."""
        return self

    async def recv(self) -> Message:
        """Never: what the supervisor says is handed in by ``obey``."""
        raise NotImplementedError

    # --------------------------------------------------------------------------- ledger

    def ledger(self) -> SimLedger:
        """Return what looks at the bookings."""
        return self.booked

    # -------------------------------------------------------------------------- engines

    def engines(self, on_message: OnMessage) -> "EnginesPort":
        """Bind what engines connect to."""
        self._on_engine = on_message
        return EnginesPort(self._engines)

    def engine_connected(self, identity: bytes, worker: SimWorker) -> None:
        """Let an engine be sent to."""
        self._engines[identity] = worker

    def engine_gone(self, identity: bytes) -> None:
        """Notice that nobody is behind a connection any more."""
        self._engines.pop(identity, None)

    def on_engine(self, frames: list[bytes]) -> None:
        """Take an engine's hello."""
        if self._owner.alive:
            self._on_engine(frames)

    # -------------------------------------------------------------------------- outputs

    def outputs(self, on_message: OnMessage, on_turn_end: Callable[[], None]) -> "OutputsPort":
        """Bind what engines push to."""
        self._on_output = on_message
        self._on_turn_end = on_turn_end
        return OutputsPort(self.pause, self.resume)

    @property
    def takes_outputs(self) -> bool:
        """Whether engines may say more."""
        return not self._is_paused or len(self._outputs) < OUTPUTS_HELD_BACK

    def on_output(self, frames: list[bytes]) -> None:
        """Take an engine's message; what comes at about the same time makes one turn."""
        self._outputs.append(frames)
        self._turn_soon()

    def pause(self) -> None:
        """Take no outputs until ``resume``."""
        self._is_paused = True

    def resume(self) -> None:
        """Take outputs again."""
        self._is_paused = False
        self._turn_soon()
        for worker in self._engines.values():
            worker.wake()

    def _turn_soon(self) -> None:
        if not self._turn_is_due and self._owner.alive:
            self._turn_is_due = True
            self._node.queue.after(self._node.draw.choice((0.0, 0.0, 0.001)), self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        if not self._owner.alive:
            return
        while self._outputs and not self._is_paused:
            self._on_output(self._outputs.popleft())
        self._on_turn_end()

    # --------------------------------------------------------------------------- others

    def kv_events(self, endpoint: str, on_message: OnMessage) -> "FeedLink":
        """Subscribe to an engine's KV events."""
        worker = self._node.worker_of(int(endpoint.removeprefix("kv-")))
        link = FeedLink(self._node.queue, self._owner.under_way_s, self._guarded(on_message))
        if worker is not None:
            worker.feeds.append(link)
        return link

    def gateway(
        self, attached: AttachGateway, on_message: OnMessage, on_drained: Callable[[], None]
    ) -> "GatewayPort":
        """Connect to a gateway."""
        requests = Link(self._node.queue, self._owner.under_way_s, self._guarded(on_message))
        port = GatewayPort(self._node, self._owner, requests, on_drained)
        self._node.connect_gateway(attached.generation, port)
        return port

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Scheduled:
        """Call back after a while, if the process still lives."""

        def call() -> None:
            if self._owner.alive:
                callback()

        return self._node.queue.after(delay_s, call)

    def send(self, message: Message) -> None:
        """Tell the supervisor."""
        self._node.tell_supervisor(self._owner, message)

    def close(self) -> None:
        """Nothing: a simulated process takes all it has with it."""

    def _guarded(self, on_message: OnMessage) -> OnMessage:
        def take(frames: list[bytes]) -> None:
            if self._owner.alive:
                on_message(frames)

        return take


class FeedLink(Link[list[bytes]]):
    """A subscription, which its owner closes."""

    def close(self) -> None:
        """Hear nothing more."""
        self.cut()


class EnginesPort:
    """All engines' input."""

    def __init__(self, engines: dict[bytes, SimWorker]) -> None:
        self._engines = engines

    def send(self, frames: Frames) -> None:
        """Send to an engine; raises PeerError where nobody takes it."""
        worker = self._engines.get(bytes(frames[0]))
        if worker is None or worker.mute:
            cause = OSError("its queue is full" if worker else "nobody has that identity")
            text = f"message cannot be sent: {cause}"
            raise PeerError(text) from cause
        worker.send([bytes(frame) for frame in frames[1:]])

    def close(self) -> None:
        """Nothing."""


class OutputsPort:
    """Where engines' outputs come in."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.pause = pause
        self.resume = resume

    def close(self) -> None:
        """Nothing."""


class GatewayPort:
    """One gateway's two connections."""

    def __init__(
        self,
        node: "SimNode",
        owner: "SimDispatcher",
        requests: Link[list[bytes]],
        on_drained: Callable[[], None],
    ) -> None:
        self._node = node
        self._owner = owner
        self._requests = requests
        self._on_drained = on_drained
        self._waiting: deque[list[bytes]] = deque()
        self._has_said_ready = False
        self._process: SimGateway | None = None
        self._link: Link[list[bytes]] | None = None

    def connected(self, process: SimGateway) -> None:
        """Find the gateway's sockets, which it makes some time after it was attached."""
        self._process = process
        self._link = Link(self._node.queue, self._owner.under_way_s, process.on_outputs)
        process.engine_connected(self._requests, self)
        if self._has_said_ready:
            self.say([])

    @property
    def congested(self) -> bool:
        """Whether it has not taken all that it was sent."""
        return bool(self._waiting)

    def say(self, frames: Frames) -> None:  # noqa: ARG002
        """Send an engine's ready message."""
        self._has_said_ready = True
        process = self._process
        if process is not None:
            self._node.queue.after(self._owner.under_way_s(), process.engine_is_ready)

    def send(self, frames: Frames) -> None:
        """Send outputs, or queue them behind others that wait."""
        message = [bytes(frame) for frame in frames]
        if self._waiting or (self._process is not None and self._process.is_stuck):
            self._waiting.append(message)
        elif self._link is not None:
            self._link.send(message)

    def unstuck(self) -> None:
        """Let the gateway take what waits for it."""
        if self._waiting and self._link is not None and self._owner.alive:
            while self._waiting:
                self._link.send(self._waiting.popleft())
            self._on_drained()

    def close(self) -> None:
        """Drop what was not sent."""
        self._waiting.clear()
        self._requests.cut()
        if self._link is not None:
            self._link.cut()
        if self._process is not None:
            self._process.engine_closed(self)


class SimDispatcher(Process):
    """One dispatcher process."""

    kind = ProcessKind.DISPATCHER

    def __init__(self, node: "SimNode", name: str, generation: Generation) -> None:
        super().__init__(node, name, generation)
        plan = node.plan
        spec = DispatcherSpec(
            generation=generation,
            runtime_dir="",
            control_address="",
            input_address="",
            output_address="",
            local_prefill_tokens=plan.local_prefill_tokens,
            max_queued_requests=plan.max_queued_requests,
            names_listeners=plan.has_tier,
        )
        self.ports = SimPorts(node, self)
        self.service = Dispatcher(spec, node.queue, self.ports)
        self.watch = RouterWatch(node, self, self.service.router)
        self.from_supervisor: Link[Message] = Link(node.queue, self.under_way_s, self._obey)
        node.tell_supervisor(self, DispatcherReady(generation=generation, pid=1))
        node.queue.after(TICK_S, self._tick)

    def _obey(self, message: Message) -> None:
        if self.alive:
            self.service.obey(message)

    def _tick(self) -> None:
        if self.alive:
            self.service.tick()
            self.node.queue.after(TICK_S, self._tick)

    def ended(self) -> None:
        """Break every connection."""
        self.node.dispatcher_died(self)

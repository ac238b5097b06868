"""The dispatcher's ports as ZeroMQ sockets, read and written from inside the running loop."""

import asyncio
from collections.abc import Callable
from typing import Final

import zmq

from nodeserve.bus.channel import ControlChannel
from nodeserve.bus.ledger_client import LedgerSocket
from nodeserve.bus.sockets import Frames, Reader, Writer, bind, open_socket, send_now
from nodeserve.dispatcher.ports import OnMessage, Timer
from nodeserve.ids import Generation
from nodeserve.wire.control import AttachGateway
from nodeserve.wire.engine_core import identity_of
from nodeserve.wire.spawn import DispatcherSpec

ENGINE_INPUT_MESSAGES: Final = 10_000
"""An engine's input thread does nothing but read: who lags by so much is as good as dead."""

ENGINE_OUTPUT_MESSAGES: Final = 64
"""Steps of one engine that may wait here. When gateways are slow an engine soon meets this mark
and stops; a larger one would only let it run ahead of clients that may be gone."""

KV_EVENT_MESSAGES: Final = 10_000
"""What a burst may queue; past it the engine's PUB drops, which shows as a gap."""

ENGINE_IDENTITY: Final = identity_of(Generation(0))
"""A gateway is told to expect one engine, number 0."""

RECONNECT_MS: Final = 20
"""A gateway binds its sockets some time after it is spawned; ZeroMQ asks again so often."""


class EnginesSocket:
    """One ROUTER that every engine connects to."""

    def __init__(self, sock: "zmq.Socket[bytes]", on_message: OnMessage) -> None:
        self._sock = sock
        self._reader = Reader(sock, on_message)

    def send(self, frames: Frames) -> None:
        """Send to the engine that the first frame names; raises PeerError."""
        try:
            send_now(self._sock, frames)
        finally:
            self._reader.look_again()

    def close(self) -> None:
        """Close the socket."""
        self._reader.close()


class GatewaySockets:
    """One DEALER for a gateway's requests and one PUSH for its outputs."""

    def __init__(
        self,
        requests: "zmq.Socket[bytes]",
        outputs: "zmq.Socket[bytes]",
        on_message: OnMessage,
        on_drained: Callable[[], None],
    ) -> None:
        self._requests = requests
        self._reader = Reader(requests, on_message)
        self._writer = Writer(outputs, on_drained)
        self.send = self._writer.send

    @property
    def congested(self) -> bool:
        """Whether it has not taken all that it was sent."""
        return self._writer.congested

    def say(self, frames: Frames) -> None:
        """Send where its requests come from; raises PeerError."""
        send_now(self._requests, frames)
        self._reader.look_again()

    def close(self) -> None:
        """Close both sockets and drop what was not sent."""
        self._reader.close()
        self._writer.close()


class Sockets:
    """Opens one dispatcher's sockets, at the addresses of its spec. Make it in a running loop.

    Every opening may raise ConfigError, for an address that cannot be used, or PeerError, for
    one that is in use.
    """

    def __init__(self, spec: DispatcherSpec) -> None:
        self._spec = spec
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def supervisor(self) -> ControlChannel:
        """Connect to the supervisor."""
        return ControlChannel(self._spec.control_address, str(self._spec.generation).encode())

    def ledger(self) -> LedgerSocket | None:
        """Connect to the ledger; None where there is none."""
        address = self._spec.ledger_address
        return None if address is None else LedgerSocket(address, self._spec.generation)

    def engines(self, on_message: OnMessage) -> EnginesSocket:
        """Bind what engines connect to."""
        sock = open_socket(self._context, zmq.ROUTER, high_water_messages=ENGINE_INPUT_MESSAGES)
        bind(sock, self._spec.input_address)
        return EnginesSocket(sock, on_message)

    def outputs(self, on_message: OnMessage, on_turn_end: Callable[[], None]) -> Reader:
        """Bind what engines push to."""
        sock = open_socket(self._context, zmq.PULL, high_water_messages=ENGINE_OUTPUT_MESSAGES)
        bind(sock, self._spec.output_address)
        return Reader(sock, on_message, on_turn_end=on_turn_end)

    def kv_events(self, endpoint: str, on_message: OnMessage) -> Reader:
        """Subscribe to an engine's KV events."""
        sock = open_socket(self._context, zmq.SUB, high_water_messages=KV_EVENT_MESSAGES)
        sock.setsockopt(zmq.SUBSCRIBE, b"")
        sock.connect(endpoint)
        return Reader(sock, on_message)

    def gateway(
        self, attached: AttachGateway, on_message: OnMessage, on_drained: Callable[[], None]
    ) -> GatewaySockets:
        """Connect to a gateway."""
        requests = open_socket(self._context, zmq.DEALER, identity=ENGINE_IDENTITY)
        requests.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        requests.connect(attached.input_address)
        outputs = open_socket(self._context, zmq.PUSH)
        outputs.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        outputs.connect(attached.output_address)
        return GatewaySockets(requests, outputs, on_message, on_drained)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back after a while."""
        return asyncio.get_running_loop().call_later(delay_s, callback)

    def close(self) -> None:
        """Destroy the context and with it what is still open."""
        self._context.destroy(linger=0)

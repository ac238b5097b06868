"""What the dispatcher is connected to: sockets where it serves, queues where it is simulated.

Everything else of the dispatcher does no I/O: it is told what has come, and says what is to go.
"""

from collections.abc import Callable
from typing import Protocol

from nodeserve.bus.ledger_client import LedgerPort
from nodeserve.bus.sockets import Frames
from nodeserve.wire.control import AttachGateway, Message

OnMessage = Callable[[list[bytes]], None]
"""Takes one message that has come."""


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Make it not come. Harmless when it has."""
        ...


class Closable(Protocol):
    """A port that is only heard."""

    def close(self) -> None:
        """Hear nothing more."""
        ...


class SupervisorPort(Protocol):
    """The control channel."""

    @property
    def num_bad_frames(self) -> int:
        """How many frames were no control messages."""
        ...

    def send(self, message: Message) -> None:
        """Send to the supervisor."""
        ...

    async def recv(self) -> Message:
        """Wait for the supervisor's next message."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class EnginesPort(Protocol):
    """All engines' input sockets; each one's hello comes back on it."""

    def send(self, frames: Frames) -> None:
        """Send to the engine whose identity is the first frame.

        Raises:
            PeerError: It is gone or does not read.
        """
        ...

    def close(self) -> None:
        """Close it."""
        ...


class OutputsPort(Protocol):
    """Where all engines' outputs come in."""

    def pause(self) -> None:
        """Take nothing, so that engines stop, until ``resume``."""
        ...

    def resume(self) -> None:
        """Take outputs again. Harmless when not paused."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class GatewayPort(Protocol):
    """One gateway's two sockets."""

    @property
    def congested(self) -> bool:
        """Whether it has not taken all that it was sent."""
        ...

    def say(self, frames: Frames) -> None:
        """Send where its requests come from: an engine's ready message.

        Raises:
            PeerError: It does not take it.
        """
        ...

    def send(self, frames: Frames) -> None:
        """Send outputs, or queue them behind others that wait.

        Raises:
            PeerError: It has not read for a long time.
        """
        ...

    def close(self) -> None:
        """Close both and drop what was not sent."""
        ...


class Ports(Protocol):
    """Opens what one dispatcher is connected to, and calls it back later."""

    def supervisor(self) -> SupervisorPort:
        """Connect to the supervisor."""
        ...

    def ledger(self) -> LedgerPort | None:
        """Connect to the ledger; None where there is none."""
        ...

    def engines(self, on_message: OnMessage) -> EnginesPort:
        """Bind what engines connect to; ``on_message`` gets ``[identity, ...]``."""
        ...

    def outputs(self, on_message: OnMessage, on_turn_end: Callable[[], None]) -> OutputsPort:
        """Bind what engines push to; ``on_turn_end`` comes after each batch of messages."""
        ...

    def kv_events(self, endpoint: str, on_message: OnMessage) -> Closable:
        """Subscribe to an engine's KV events."""
        ...

    def gateway(
        self, attached: AttachGateway, on_message: OnMessage, on_drained: Callable[[], None]
    ) -> GatewayPort:
        """Connect to a gateway; ``on_drained`` comes when it was congested and is no more."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back after a while."""
        ...

    def close(self) -> None:
        """Let go of what they have in common. Call it last."""
        ...

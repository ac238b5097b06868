"""The socket that every engine's scheduler talks to: one ROUTER, drained inside the loop."""

from collections.abc import Callable
from typing import Final

from nodeserve.bus.generations import GenerationsSocket
from nodeserve.wire import kv_tier

MAX_MESSAGE_BYTES: Final = 16 << 20

OnRequest = Callable[[int, kv_tier.Request], None]
"""Takes what the engine of a generation says."""


class EnginesSocket(GenerationsSocket[kv_tier.Request]):
    """Says what engines say, and sends to them by their generation; make it in a running loop."""

    def __init__(self, address: str, on_request: OnRequest) -> None:
        """Bind at ``address``.

        Raises:
            ConfigError: The address cannot be used.
            PeerError: It is in use.
        """
        super().__init__(
            address, kv_tier.decode_request, on_request, max_message_bytes=MAX_MESSAGE_BYTES
        )

    def send(self, generation: int, answer: kv_tier.Answer) -> None:
        """Send without waiting.

        Raises:
            PeerError: The engine is gone, or has not read for a thousand messages.
        """
        self.send_frame(generation, kv_tier.encode_message(answer))

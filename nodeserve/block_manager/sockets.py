"""The socket that every engine's scheduler talks to: one ROUTER, drained inside the loop."""

from collections.abc import Callable
from typing import Final

import zmq

from nodeserve.bus.sockets import Reader, bind, open_socket, send_now
from nodeserve.wire import kv_tier

MAX_MESSAGE_BYTES: Final = 16 << 20

_IDENTIFIED_FRAMES: Final = 2
_MAX_IDENTITY_BYTES: Final = 10

OnRequest = Callable[[int, kv_tier.Request], None]
"""Takes what the engine of a generation says."""


class EnginesSocket:
    """Says what engines say, and sends to them by their generation; make it in a running loop.

    Attributes:
        num_rejected: Messages dropped because they were none of ours.
    """

    def __init__(self, address: str, on_request: OnRequest) -> None:
        """Bind at ``address``.

        Raises:
            ConfigError: The address cannot be used.
            PeerError: It is in use.
        """
        self.num_rejected = 0
        self._on_request = on_request
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_socket(self._context, zmq.ROUTER, max_message_bytes=MAX_MESSAGE_BYTES)
        try:
            bind(self._socket, address)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._reader = Reader(self._socket, self._take)

    def send(self, generation: int, answer: kv_tier.Answer) -> None:
        """Send without waiting.

        Raises:
            PeerError: The engine is gone, or has not read for a thousand messages.
        """
        try:
            send_now(self._socket, [str(generation).encode(), kv_tier.encode_message(answer)])
        finally:
            self._reader.look_again()

    def close(self) -> None:
        """Close the socket and drop what was not sent."""
        self._reader.close()
        self._context.destroy(linger=0)

    def _take(self, frames: list[bytes]) -> None:
        generation = _generation(frames[0]) if len(frames) == _IDENTIFIED_FRAMES else None
        if generation is None:
            self.num_rejected += 1
            return
        try:
            request = kv_tier.decode_request(frames[1])
        except ValueError:
            self.num_rejected += 1
            return
        self._on_request(generation, request)


def _generation(identity: bytes) -> int | None:
    """Return the generation that a well-formed identity names; they count from 1."""
    is_number = identity.isdigit() and len(identity) <= _MAX_IDENTITY_BYTES
    return int(identity) if is_number and identity[:1] != b"0" else None

"""A socket that processes talk to, each known by its generation: one ROUTER inside the loop."""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

import zmq

from nodeserve.bus.sockets import Reader, bind, open_socket, send_now

M = TypeVar("M")

_IDENTIFIED_FRAMES: Final = 2
_MAX_IDENTITY_BYTES: Final = 10


class GenerationsSocket(Generic[M]):
    """Says what processes say, and sends to them by generation; make it in a running loop.

    Attributes:
        num_rejected: Messages dropped because they were none of ours.
    """

    def __init__(
        self,
        address: str,
        decode: Callable[[bytes], M],
        on_message: Callable[[int, M], None],
        *,
        max_message_bytes: int,
    ) -> None:
        """Bind at ``address``; ``decode`` raises ValueError for what is no message.

        Raises:
            ConfigError: The address cannot be used.
            PeerError: It is in use.
        """
        self.num_rejected = 0
        self._decode = decode
        self._on_message = on_message
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_socket(self._context, zmq.ROUTER, max_message_bytes=max_message_bytes)
        try:
            bind(self._socket, address)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._reader = Reader(self._socket, self._take)

    def send_frame(self, generation: int, frame: bytes) -> None:
        """Send without waiting.

        Raises:
            PeerError: The process is gone, or has not read for a thousand messages.
        """
        try:
            send_now(self._socket, [str(generation).encode(), frame])
        finally:
            self._reader.look_again()

    def pause(self) -> None:
        """Hear nothing until ``resume``: what is said waits, and then its senders do."""
        self._reader.pause()

    def resume(self) -> None:
        """Hear what is said again."""
        self._reader.resume()

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
            message = self._decode(frames[1])
        except ValueError:
            self.num_rejected += 1
            return
        self._on_message(generation, message)


def _generation(identity: bytes) -> int | None:
    """Return the generation that a well-formed identity names; they count from 1."""
    is_number = identity.isdigit() and len(identity) <= _MAX_IDENTITY_BYTES
    return int(identity) if is_number and identity[:1] != b"0" else None

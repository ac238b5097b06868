"""The line to the ledger: what is not read in time is missing there, and nobody waits."""

import contextlib
from typing import Final

import zmq

from nodeserve.bus.sockets import is_readable, open_socket, recv_now, send_now
from nodeserve.errors import PeerError
from nodeserve.wire.accounting import (
    LedgerHello,
    Meter,
    MetersHello,
    MetersRead,
    Reading,
    decode_from_ledger,
    encode_message,
)

HIGH_WATER: Final = 4000
"""Readings that wait for a ledger that is not there: an hour of them. Later ones are dropped; the
window that ends with the next one that arrives is as long as the gap."""


class LedgerLine:
    """Tells the ledger of meters.

    Attributes:
        num_dropped: Readings for which there was no room.
    """

    def __init__(self, address: str, generation: int) -> None:
        """Connect, whether or not anybody listens yet."""
        self.num_dropped = 0
        self._generation = generation
        self._hello: MetersHello | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        identity = str(generation).encode()
        self._socket = open_socket(
            self._context, zmq.DEALER, identity=identity, high_water_messages=HIGH_WATER
        )
        self._socket.connect(address)

    def introduce(self, meters: tuple[Meter, ...]) -> None:
        """Say which meters there are, if the ledger was told of others."""
        hello = MetersHello(generation=self._generation, meters=meters)
        if hello != self._hello:
            self._hello = hello
            self._send(encode_message(hello))

    def read(self, readings: tuple[Reading, ...], *, at_s: float, at_unix_s: float) -> None:
        """Say what all meters show."""
        message = MetersRead(
            generation=self._generation, at_s=at_s, at_unix_s=at_unix_s, readings=readings
        )
        self._send(encode_message(message))

    def listen(self) -> None:
        """Say hello again to a ledger that does not know us."""
        while is_readable(self._socket):
            frames = recv_now(self._socket)
            with contextlib.suppress(ValueError):
                said = decode_from_ledger(frames[-1])
                if isinstance(said, LedgerHello) and self._hello is not None:
                    self._send(encode_message(self._hello))

    def close(self) -> None:
        """Close it; what was sent last goes on its way for a second."""
        self._socket.close()
        self._context.term()

    def _send(self, frame: bytes) -> None:
        try:
            send_now(self._socket, [frame])
        except PeerError:
            self.num_dropped += 1

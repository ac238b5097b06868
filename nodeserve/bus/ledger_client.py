"""The way to the ledger, for those who number their messages: nobody waits for it."""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import zmq

from nodeserve.bus.sockets import is_readable, open_socket, recv_now, send_now
from nodeserve.errors import PeerError
from nodeserve.wire.accounting import (
    MAX_UNACKNOWLEDGED,
    EngineHello,
    FromLedger,
    LedgerAck,
    LedgerHello,
    RequestsNoted,
    StepLog,
    UseReported,
    decode_from_ledger,
    encode_message,
)

PROBE_S: Final = 5.0
"""A ledger of which nothing is heard for so long is asked whether it knows us."""

MAX_KEPT_BYTES: Final = 64 << 20
"""What is kept for the ledger, however few messages it is; the oldest go first."""

HIGH_WATER_MESSAGES: Final = 64
"""What ZeroMQ keeps beside that."""

LINGER_MS: Final = 500
"""How long what was said last may take to go when we close."""


class LedgerPort(Protocol):
    """One connection to the ledger, whichever incarnation of it is there."""

    def send(self, frame: bytes) -> bool:
        """Send without waiting; False where no more is taken at present."""
        ...

    def recv(self) -> bytes | None:
        """Return a message that has come."""
        ...

    def close(self) -> None:
        """Close it; what was sent last goes on its way."""
        ...


class LedgerSocket:
    """A LedgerPort over ZeroMQ; may be connected before the ledger listens."""

    def __init__(self, address: str, generation: int) -> None:
        """Connect as the process of this generation.

        Raises:
            ConfigError: The address cannot be used.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_socket(
            self._context,
            zmq.DEALER,
            identity=str(generation).encode(),
            high_water_messages=HIGH_WATER_MESSAGES,
        )
        self._socket.connect(address)

    def send(self, frame: bytes) -> bool:
        """Send without waiting; False where no more is taken at present."""
        try:
            send_now(self._socket, [frame])
        except PeerError:
            return False
        return True

    def recv(self) -> bytes | None:
        """Return a message that has come."""
        while is_readable(self._socket):
            frames = recv_now(self._socket)
            if len(frames) == 1:
                return frames[0]
        return None

    def close(self) -> None:
        """Close; what was sent last may linger for ``LINGER_MS``."""
        self._socket.close(linger=LINGER_MS)
        self._context.term()


class LedgerClient:
    """Numbers what is said, keeps it until it is acknowledged, and says it again when asked.

    One thread at a time uses it.

    Attributes:
        num_bad_frames: Messages dropped because no ledger says such a thing.
        num_forgotten: Messages given up because the ledger did not acknowledge so many.
    """

    def __init__(self, port: LedgerPort, hello: EngineHello | None = None) -> None:
        """Say nothing yet but ``hello``, where there is one."""
        self._port = port
        self._hello = None if hello is None else encode_message(hello)
        self._seq = 0
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._num_sent = 0
        self._owes_hello = self._hello is not None
        self._heard_s: float | None = None
        self.num_bad_frames = 0
        self.num_forgotten = 0

    @property
    def num_kept(self) -> int:
        """How many messages the ledger has not acknowledged."""
        return len(self._kept)

    def say(self, message_of: Callable[[int], StepLog | RequestsNoted]) -> None:
        """Say what ``message_of`` returns for its number, with the next ``turn``."""
        self._seq += 1
        frame = encode_message(message_of(self._seq))
        self._kept.append((self._seq, frame))
        self._kept_bytes += len(frame)
        while len(self._kept) > MAX_UNACKNOWLEDGED or self._kept_bytes > MAX_KEPT_BYTES:
            self._drop_oldest()
            self.num_forgotten += 1

    def turn(self, now_s: float) -> list[UseReported]:
        """Take what has come and send what is to go; return what was reported.

        Call it several times a second.
        """
        if self._heard_s is None:
            self._heard_s = now_s
        reported = []
        while (frame := self._port.recv()) is not None:
            try:
                message = decode_from_ledger(frame)
            except ValueError:
                self.num_bad_frames += 1
                continue
            self._heard_s = now_s
            if isinstance(message, UseReported):
                reported.append(message)
            else:
                self._obey(message)
        if now_s - self._heard_s >= PROBE_S:
            self._heard_s = now_s
            self._probe()
        self._send()
        return reported

    def close(self) -> None:
        """Close the connection; what was sent last goes on its way."""
        self._port.close()

    def _obey(self, message: FromLedger) -> None:
        match message:
            case LedgerAck(seq=seq):
                while self._kept and self._kept[0][0] <= seq:
                    self._drop_oldest()
            case LedgerHello():
                self._owes_hello = self._hello is not None
                self._num_sent = 0
            case UseReported():
                pass

    def _drop_oldest(self) -> None:
        _, frame = self._kept.popleft()
        self._kept_bytes -= len(frame)
        self._num_sent = max(0, self._num_sent - 1)

    def _probe(self) -> None:
        """Say something again: a ledger that does not know us says so, and then gets it all."""
        if self._hello is not None:
            self._owes_hello = True
        elif self._num_sent:
            self._port.send(self._kept[0][1])

    def _send(self) -> None:
        if self._owes_hello and self._hello is not None:
            if not self._port.send(self._hello):
                return
            self._owes_hello = False
        while self._num_sent < len(self._kept):
            if not self._port.send(self._kept[self._num_sent][1]):
                return
            self._num_sent += 1

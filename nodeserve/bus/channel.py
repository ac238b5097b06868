"""The control channel: nodeserve's own messages between the supervisor and everybody else.

A frame that is not a control message is dropped and counted, whoever sent it: no peer can
stop another one's channel. Nothing here waits without a deadline except ``recv`` of the two
asyncio ends, whose caller's task ends it.
"""

import asyncio
import select
import socket
import threading
import time
from pathlib import Path
from typing import Final

import zmq

from nodeserve.bus.sockets import (
    CONTROL_MESSAGE_BYTES,
    bind_to,
    is_readable,
    open_socket,
    recv_now,
    send_now,
)
from nodeserve.errors import DeadlineError, PeerError
from nodeserve.wire import control

_IDENTIFIED_FRAMES: Final = 2


class _AsyncSocket:
    """One control socket awaited inside the loop; one task may receive at a time."""

    def __init__(self, kind: int, identity: bytes | None = None) -> None:
        self._kind = kind
        self._identity = identity
        self._waiter: asyncio.Future[None] | None = None
        self.open()

    def open(self) -> None:
        """Open the socket, or after ``close`` another one; who waits in ``recv`` goes on."""
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = open_socket(
            self.context,
            self._kind,
            identity=self._identity,
            max_message_bytes=CONTROL_MESSAGE_BYTES,
        )

    async def recv(self) -> list[bytes]:
        while not is_readable(self.socket):
            await self._wait_for_sign()
        return recv_now(self.socket)

    def send(self, frames: list[bytes]) -> None:
        try:
            send_now(self.socket, frames)
        finally:
            self._wake()

    def close(self) -> None:
        self._wake()
        self.socket.close()
        self.context.term()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait_for_sign(self) -> None:
        loop = asyncio.get_running_loop()
        fd = int(self.socket.getsockopt(zmq.FD))
        self._waiter = loop.create_future()
        loop.add_reader(fd, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            loop.remove_reader(fd)


class ControlServer:
    """The supervisor's end: a ROUTER that all others connect to.

    Attributes:
        listening: Where they connect; it can be handed on to the supervisor's next program.
        num_bad_frames: Messages dropped because they were not control messages.
        num_undelivered: Messages that their peer could not take.
    """

    def __init__(self, listening: socket.socket) -> None:
        """Accept who connects to ``listening``, as ``bus.sockets.listen_at`` returns it."""
        self.listening = listening
        self._socket = _AsyncSocket(zmq.ROUTER)
        self.num_bad_frames = 0
        self.num_undelivered = 0
        try:
            bind_to(self._socket.socket, listening)
        except BaseException:
            self._socket.close()
            raise

    @property
    def is_readable(self) -> bool:
        """Whether a message waits."""
        return is_readable(self._socket.socket)

    async def recv(self) -> tuple[bytes, control.Message]:
        """Return the next message and the identity of who sent it."""
        while True:
            frames = await self._socket.recv()
            if len(frames) == _IDENTIFIED_FRAMES:
                try:
                    return frames[0], control.decode(frames[1])
                except ValueError:
                    pass
            self.num_bad_frames += 1

    def send(self, identity: bytes, message: control.Message) -> None:
        """Send to one peer without waiting.

        Raises:
            PeerError: Nobody has that identity any more, or it does not read. The server is
                as good as before; a supervisor that expects deaths catches this.
        """
        try:
            self._socket.send([identity, control.encode(message)])
        except PeerError as error:
            self.num_undelivered += 1
            kind = type(message).__name__
            text = f"control peer {identity!r} cannot be sent a {kind}: {error.__cause__}"
            raise PeerError(text) from error

    def hang_up(self) -> None:
        """Send what is still to be sent, within a second; peers connect again and wait."""
        self._socket.close()

    def pick_up(self) -> None:
        """Listen again after ``hang_up``; who waits in ``recv`` has not noticed.

        Call it before the loop turns.
        """
        self._socket.open()
        bind_to(self._socket.socket, self.listening)

    def close(self) -> None:
        """Close for good; what was sent last may linger for a second."""
        self.hang_up()
        if self.listening.fileno() >= 0:
            Path(self.listening.getsockname()).unlink(missing_ok=True)
            self.listening.close()


class ControlChannel:
    """A child's end, for use inside an asyncio loop: connects a DEALER.

    Attributes:
        num_bad_frames: Messages dropped because they were not control messages.
    """

    def __init__(self, address: str, identity: bytes) -> None:
        """Connect; succeeds whether or not anybody listens yet."""
        self._socket = _AsyncSocket(zmq.DEALER, identity)
        self._socket.socket.connect(address)
        self.num_bad_frames = 0

    async def recv(self) -> control.Message:
        """Return the supervisor's next message."""
        while True:
            frames = await self._socket.recv()
            if len(frames) == 1:
                try:
                    return control.decode(frames[0])
                except ValueError:
                    pass
            self.num_bad_frames += 1

    def send(self, message: control.Message) -> None:
        """Send without waiting.

        Raises:
            PeerError: The supervisor has not read for a thousand messages.
        """
        self._socket.send([control.encode(message)])

    def close(self) -> None:
        """Close the socket; what was sent last may linger for a second."""
        self._socket.close()


class BlockingControlClient:
    """A peer's end without a loop: for a worker's threads and for the command line.

    Any thread may send at any time, also while another one waits for a message.

    Attributes:
        num_bad_frames: Messages dropped because they were not control messages.
    """

    _SLICE_S: Final = 0.05

    def __init__(self, address: str, identity: bytes) -> None:
        """Connect; succeeds whether or not anybody listens yet."""
        self._address = address
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_socket(
            self._context, zmq.DEALER, identity=identity, max_message_bytes=CONTROL_MESSAGE_BYTES
        )
        self._socket.connect(address)
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._lock = threading.Lock()
        self.num_bad_frames = 0

    def send(self, message: control.Message) -> None:
        """Send without waiting for the peer.

        Raises:
            PeerError: The supervisor has not read for a thousand messages, or we are closed.
        """
        with self._lock:
            if self._socket.closed:
                text = f"control socket {self._address} is closed; nothing can be sent"
                raise PeerError(text)
            send_now(self._socket, [control.encode(message)])

    def recv(self, within_s: float) -> control.Message:
        """Return the next message.

        Raises:
            DeadlineError: None came within ``within_s`` seconds.
            PeerError: The socket is closed.
        """
        sign = select.poll()
        sign.register(self._fd, select.POLLIN)
        until_s = time.monotonic() + within_s
        while True:
            left_s = until_s - time.monotonic()
            frames = self._take()
            if frames is None:
                if left_s <= 0:
                    text = (
                        f"control socket {self._address}: no message within {within_s:g} s; "
                        "see whether the daemon runs"
                    )
                    raise DeadlineError(text)
                # Wait without the lock, and not long: a send may have taken the sign.
                sign.poll(min(left_s, self._SLICE_S) * 1000)
                continue
            if len(frames) == 1:
                try:
                    return control.decode(frames[0])
                except ValueError:
                    pass
            self.num_bad_frames += 1

    def poll(self) -> control.Message | None:
        """Return a message that has come, without waiting.

        Raises:
            PeerError: We are closed.
        """
        while (frames := self._take()) is not None:
            if len(frames) == 1:
                try:
                    return control.decode(frames[0])
                except ValueError:
                    pass
            self.num_bad_frames += 1
        return None

    def request(self, message: control.Message, within_s: float) -> control.Message:
        """Send ``message`` and return what comes back first.

        Raises:
            DeadlineError: No answer within ``within_s`` seconds. What was not delivered by then
                never will be.
        """
        self.send(message)
        try:
            return self.recv(within_s)
        except PeerError:
            self._socket.setsockopt(zmq.LINGER, 0)
            raise

    def close(self) -> None:
        """Close; what was sent last may linger for a second. May be called twice."""
        with self._lock:
            self._socket.close()
        self._context.term()

    def _take(self) -> list[bytes] | None:
        with self._lock:
            if self._socket.closed:
                text = f"control socket {self._address} is closed; nothing can be received"
                raise PeerError(text)
            if not is_readable(self._socket):
                return None
            return recv_now(self._socket)

"""ZeroMQ sockets with bounded everything, drained from their file descriptor inside the loop.

Draining the descriptor costs about 1 µs of CPU a message, ``zmq.asyncio`` 14 µs. The price is
to know two things about that descriptor. It only says "something may have changed": after it
fires, ``EVENTS`` must be read until it shows nothing. And any other call on the socket, a send
too, may swallow that sign: so after sending on a socket that also receives, look again.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import zmq

from nodeserve.bus.endpoints import claim_path, ipc_address, path_of
from nodeserve.errors import PeerError

Frames = Sequence[bytes | memoryview]

CONTROL_MESSAGE_BYTES: Final = 64 << 20
ENGINE_MESSAGE_BYTES: Final = 256 << 20
"""Largest frame of the EngineCore wire: the pixel tensor of one video can pass 64 MiB.

A larger frame drops its connection silently, so this is a fuse and not a limit for clients.
"""

HANDSHAKE_MS: Final = 2000
"""A connection that says nothing is closed after this long; ZeroMQ's default holds it 30 s."""

LINGER_MS: Final = 1000
"""How long what was sent last, such as the reason of a failure, may outlive its socket."""

HIGH_WATER_MESSAGES: Final = 1000

LISTEN_BACKLOG: Final = 1024
"""Connections that wait while nobody accepts them."""

# Plain integers: an operation on pyzmq's enums costs as much as the call it is for.
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)
_WRITABLE: Final = int(zmq.POLLOUT)
_MORE: Final = int(zmq.RCVMORE)
_NOW: Final = int(zmq.NOBLOCK)
_NOW_AND_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


def open_socket(
    context: "zmq.Context[zmq.Socket[bytes]]",
    kind: int,
    *,
    identity: bytes | None = None,
    max_message_bytes: int = ENGINE_MESSAGE_BYTES,
    high_water_messages: int = HIGH_WATER_MESSAGES,
) -> "zmq.Socket[bytes]":
    """Return a socket with our limits set; a ROUTER also reports peers it cannot reach."""
    sock = context.socket(kind)
    sock.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    sock.setsockopt(zmq.LINGER, LINGER_MS)
    sock.setsockopt(zmq.SNDHWM, high_water_messages)
    sock.setsockopt(zmq.RCVHWM, high_water_messages)
    if identity is not None:
        sock.setsockopt(zmq.IDENTITY, identity)
    if kind == zmq.ROUTER:
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return sock


def bind(sock: "zmq.Socket[bytes]", address: str) -> None:
    """Bind to an ``ipc://`` address in a private directory; only our user can connect.

    Sets the process's umask for a moment: call it before starting threads that make files.

    Raises:
        ConfigError: The address or its directory cannot be used.
        PeerError: Another process listens there.
    """
    path = path_of(address)
    claim_path(path)
    before = os.umask(0o077)
    try:
        sock.bind(address)
    except zmq.ZMQError as error:
        message = f"socket {path} cannot be bound: {error}; see its directory"
        raise PeerError(message) from error
    finally:
        os.umask(before)


def listen_at(address: str) -> socket.socket:
    """Return a socket that listens at an ``ipc://`` address, for ``bind_to``; refuses as ``bind``.

    It can be handed on: who connects while nobody has bound to it waits.

    Raises:
        ConfigError: The address or its directory cannot be used.
        PeerError: Another process listens there.
    """
    path = path_of(address)
    claim_path(path)
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o077)
    try:
        listening.bind(str(path))
        listening.listen(LISTEN_BACKLOG)
    except OSError as error:
        listening.close()
        message = f"socket {path} cannot be bound: {error}; see its directory"
        raise PeerError(message) from error
    finally:
        os.umask(before)
    return listening


def bind_to(sock: "zmq.Socket[bytes]", listening: socket.socket) -> None:
    """Let ``sock`` accept what connects to ``listening``, which stays open when ``sock`` closes."""
    own = os.dup(listening.fileno())
    sock.setsockopt(zmq.USE_FD, own)
    try:
        sock.bind(ipc_address(Path(listening.getsockname())))
    except zmq.ZMQError as error:
        os.close(own)
        message = f"socket {listening.getsockname()} cannot be used: {error}; report this"
        raise PeerError(message) from error


def is_readable(sock: "zmq.Socket[bytes]") -> bool:
    """Return whether a message waits."""
    return int(sock.getsockopt(_EVENTS)) & _READABLE != 0


def is_writable(sock: "zmq.Socket[bytes]") -> bool:
    """Return whether a message would be taken."""
    return int(sock.getsockopt(_EVENTS)) & _WRITABLE != 0


def recv_now(sock: "zmq.Socket[bytes]") -> list[bytes]:
    """Return the message that waits; only after ``is_readable``."""
    frames = [sock.recv(_NOW)]
    while sock.getsockopt(_MORE):
        frames.append(sock.recv(_NOW))
    return frames


def _send(sock: "zmq.Socket[bytes]", frames: Frames) -> None:
    """Send a message whole or, raising zmq.Again on its first frame, not at all."""
    last = len(frames) - 1
    for index in range(last):
        sock.send(frames[index], _NOW_AND_MORE)
    sock.send(frames[last], _NOW)


def send_now(sock: "zmq.Socket[bytes]", frames: Frames) -> None:
    """Send one message without waiting.

    Raises:
        PeerError: No peer takes it: its queue is full, or nobody has that identity.
    """
    try:
        _send(sock, frames)
    except zmq.ZMQError as error:
        message = f"message of {len(frames)} frames cannot be sent: {error}; drop or retry it"
        raise PeerError(message) from error


class Reader:
    """Hands one socket's messages to ``on_message`` from inside the running loop.

    At most ``batch`` messages go in one turn of the loop, so that a busy socket starves nobody.
    ``on_turn_end`` is called after each turn, also after one without a message.
    """

    def __init__(
        self,
        sock: "zmq.Socket[bytes]",
        on_message: Callable[[list[bytes]], None],
        *,
        on_turn_end: Callable[[], None] = lambda: None,
        batch: int = 64,
    ) -> None:
        """Begin to read at once; needs a running loop."""
        self._sock = sock
        self._on_message = on_message
        self._on_turn_end = on_turn_end
        self._batch = batch
        self._loop = asyncio.get_running_loop()
        self._fd = int(sock.getsockopt(zmq.FD))
        self._again: asyncio.Handle | None = None
        self._watching = False
        self.resume()

    def pause(self) -> None:
        """Take no message until ``resume``; peers then meet the socket's high-water mark."""
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._fd)
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def resume(self) -> None:
        """Take messages again. Harmless when not paused."""
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._fd, self._drain)
            self.look_again()

    def look_again(self) -> None:
        """Call this after any send on the same socket: the send may have taken the sign."""
        if self._again is None and self._watching:
            self._again = self._loop.call_soon(self._drain)

    def close(self) -> None:
        """Stop reading and close the socket, dropping what it has not sent.

        Its peer may be gone: then the process would wait for the socket's linger at its end.
        """
        self.pause()
        self._sock.close(linger=0)

    def _drain(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            self._take_batch()
        finally:
            self._on_turn_end()

    def _take_batch(self) -> None:
        sock = self._sock
        for _ in range(self._batch):
            if not self._watching or not is_readable(sock):
                return
            message = recv_now(sock)
            try:
                self._on_message(message)
            except BaseException:
                self.look_again()  # one bad message must not hold back those behind it
                raise
        self.look_again()


class Writer:
    """Sends on one socket without waiting and keeps a bounded queue for a slow peer.

    ``on_drained`` is called when a queue that had stopped us (``congested``) is empty again.
    Only for sockets that are not read: a PUSH.
    """

    def __init__(
        self,
        sock: "zmq.Socket[bytes]",
        on_drained: Callable[[], None],
        *,
        limit: int = HIGH_WATER_MESSAGES,
    ) -> None:
        """Own ``sock``, which is connected or bound; needs a running loop."""
        self._sock = sock
        self._on_drained = on_drained
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._fd = int(sock.getsockopt(zmq.FD))
        self._queue: deque[Frames] = deque()

    @property
    def congested(self) -> bool:
        """Whether something waits: who feeds this writer stops until ``on_drained``."""
        return bool(self._queue)

    @property
    def num_waiting(self) -> int:
        """How many messages wait for the peer."""
        return len(self._queue)

    def send(self, frames: Frames) -> None:
        """Send now, or queue.

        Raises:
            PeerError: The queue is full: this peer has not read for a long time.
        """
        if not self._queue:
            try:
                _send(self._sock, frames)
            except zmq.Again:
                self._queue.append(frames)
                self._loop.add_reader(self._fd, self._flush)
                self._loop.call_soon(self._flush)
            return
        if len(self._queue) >= self._limit:
            message = f"peer has not read its last {self._limit} messages; end it"
            raise PeerError(message)
        self._queue.append(frames)

    def close(self) -> None:
        """Drop what waits and close the socket."""
        if self._queue:
            self._loop.remove_reader(self._fd)
            self._queue.clear()
        self._sock.close(linger=0)

    def _flush(self) -> None:
        if not self._queue:
            return
        while self._queue:
            if not is_writable(self._sock):
                return
            try:
                _send(self._sock, self._queue[0])
            except zmq.Again:
                return
            self._queue.popleft()
        self._loop.remove_reader(self._fd)
        self._on_drained()

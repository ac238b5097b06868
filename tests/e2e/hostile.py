"""Peers that do not keep to the protocol, for sockets in a node's runtime directory."""

import os
import socket
import struct
from pathlib import Path
from typing import Final

import zmq

GARBAGE: Final = (
    [b""],
    [b"\xc1" * 100],
    [os.urandom(5000)],
    [b"\x91" * 60_000],
    [b"a", b"b", b"c"],
    [b"\x00", b"\x93\x01\x02"],
    [b"\x00", b"\xdd\xff\xff\xff\xff"],
    [b"\x03", b"\x94\x00\x01\x02\x03"],
    [b"\xff\xff\xff\xff"] * 50,
)
"""Multipart messages: not msgpack, of the wrong types, nested too deep, of lengths that lie."""

_GREETING: Final = (
    b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\x00") + bytes(32)
)
"""Source: https://rfc.zeromq.org/spec/23, ZMTP 3.0."""

_MORE, _LONG, _COMMAND = 1, 2, 4


def send_garbage(path: Path, kind: int) -> None:
    """Send what is no message to a bound ZeroMQ socket, and wait until it is on its way."""
    context = zmq.Context()
    sock = context.socket(kind)
    sock.setsockopt(zmq.LINGER, 2000)
    sock.connect(f"ipc://{path}")
    for frames in GARBAGE:
        sock.send_multipart(frames)
    sock.close()
    context.term()


def send_raw_bytes(path: Path) -> None:
    """Connect and send what is no greeting; some of it as long as one."""
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(64), os.urandom(4096), _GREETING[:20]):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            try:
                client.sendall(data)
            except BrokenPipeError:
                continue  # refused already


def send_half_a_message(path: Path, kind: str) -> None:
    """Send the first frame of a message, of which more was promised, and leave."""
    with _greeted(path, kind) as client:
        client.sendall(_frame(_MORE, b"half"))


def announce_too_much(path: Path, kind: str) -> None:
    """Announce a frame of a tebibyte, and begin it."""
    with _greeted(path, kind) as client:
        client.sendall(bytes([_LONG]) + struct.pack(">Q", 1 << 40) + bytes(1000))
        client.settimeout(10)
        while _received(client):
            pass  # until it hangs up


def idle_connections(path: Path, count: int) -> list[socket.socket]:
    """Connect and say nothing."""
    clients = [socket.socket(socket.AF_UNIX) for _ in range(count)]
    for client in clients:
        client.connect(str(path))
    return clients


def _greeted(path: Path, kind: str) -> socket.socket:
    """Return a connection that has shaken hands as a ``kind``, such as ``DEALER``."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(path))
    client.sendall(_GREETING)
    greeting = b""
    while len(greeting) < len(_GREETING):
        greeting += client.recv(len(_GREETING) - len(greeting))
    client.sendall(
        _frame(_COMMAND, b"\x05READY" + _property("Socket-Type", kind) + _property("Identity", ""))
    )
    return client


def _property(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + struct.pack(">I", len(value)) + value.encode()


def _frame(flags: int, body: bytes) -> bytes:
    return bytes([flags, len(body)]) + body


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(4096)
    except ConnectionResetError:
        return b""

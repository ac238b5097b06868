"""How a command finds the daemon and asks it something."""

import os
import secrets
import socket as sockets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec

from nodeserve.bus.channel import BlockingControlClient
from nodeserve.bus.endpoints import ipc_address
from nodeserve.config import paths
from nodeserve.errors import (
    CapacityError,
    ConfigError,
    InvariantError,
    NodeserveError,
    PeerError,
    RequestError,
)
from nodeserve.wire import control

STATUS_DEADLINE_S: Final = 5.0
_CONNECT_DEADLINE_S: Final = 2.0
_IDENTITY_BYTES: Final = 8

_KINDS: Final[Mapping[int, type[NodeserveError]]] = {
    kind.exit_code: kind
    for kind in (CapacityError, ConfigError, InvariantError, PeerError, RequestError)
}

F = TypeVar("F", bound=Callable[..., object])
R = TypeVar("R", bound=msgspec.Struct)


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node is: its socket for clients and its directory for commands."""

    socket: Path
    runtime_dir: Path


def find_node(socket: str | None, runtime_dir: str | None) -> Node:
    """Return the node that the options name, else the one that `nodeserve serve` makes.

    A node takes commands beside its first socket only; where another one is named, the node is
    looked for among those beside it.
    """
    found = Path(socket).expanduser() if socket else paths.find_socket(os.environ, os.getuid())
    found = found.absolute()
    if runtime_dir:
        return Node(socket=found, runtime_dir=Path(runtime_dir).expanduser().absolute())
    inside = paths.internals_of(found)
    if found.is_socket() and not _may_be_socket(paths.control_socket(inside)):
        inside = _inside_of_another(found) or inside
    return Node(socket=found, runtime_dir=inside)


def _may_be_socket(path: Path) -> bool:
    """Return whether a socket is there, or nobody lets us see: members may only use a node."""
    try:
        return path.is_socket()
    except PermissionError:
        return True


def _inside_of_another(socket: Path) -> Path | None:
    """Return the runtime directory of a node that also listens at ``socket``; None if not seen."""
    beside = socket.parent.glob(f"*{paths.INTERNALS_SUFFIX}")
    default = paths.internals_of(paths.find_socket(os.environ, os.getuid()))
    for inside in dict.fromkeys([*sorted(beside), default]):
        try:
            node = Node(socket=socket, runtime_dir=inside)
            status = ask(node, control.StatusRequest(), control.StatusReply)
        except NodeserveError:
            continue
        if str(socket) in status.listeners:
            return inside
    return None


def node_options(function: F) -> F:
    """Add ``--socket`` and ``--runtime-dir`` to a command."""
    socket = click.option(
        "--socket",
        type=click.Path(readable=False),
        metavar="PATH",
        help="The node's Unix socket. Default: where `serve` puts it.",
    )
    runtime_dir = click.option(
        "--runtime-dir",
        type=click.Path(),
        metavar="DIR",
        help="The node's runtime directory, if its configuration sets one.",
    )
    return socket(runtime_dir(function))


def ask(
    node: Node, message: control.Message, answer: type[R], *, within_s: float = STATUS_DEADLINE_S
) -> R:
    """Send ``message`` to the daemon and return its answer.

    Raises:
        PeerError: No daemon is there, it does not answer within ``within_s``, or it answers
            with something else than ``answer``.
        NodeserveError: It answers with an error, of this kind.
    """
    path = paths.control_socket(node.runtime_dir)
    _check_alive(path, node)
    identity = b"c" + secrets.token_bytes(_IDENTITY_BYTES)
    client = BlockingControlClient(ipc_address(path), identity)
    try:
        reply = client.request(message, within_s)
    finally:
        client.close()
    if isinstance(reply, control.CommandReply) and reply.error is not None:
        raise kind_of_code(reply.exit_code)(reply.error)
    if not isinstance(reply, answer):
        kind = type(reply).__name__
        raise PeerError(
            f"nodeserve at {node.socket} answered with a {kind}; is it another release?"
        )
    return reply


def kind_of_code(exit_code: int) -> type[NodeserveError]:
    """Return the kind of error that a node means by an exit code."""
    return _KINDS.get(exit_code, PeerError)


def nobody_answers(node: Node) -> PeerError:
    """Return the error for a node that does not run."""
    if node.socket.exists() and not node.socket.is_socket():
        what = "a directory" if node.socket.is_dir() else "a file"
        return PeerError(
            f"{node.socket} is {what} and no socket; give --socket the path that `nodeserve serve` "
            "printed, such as /run/nodeserve/api.sock"
        )
    if _listens(node.socket):
        return PeerError(
            f"{node.socket} takes requests, and no commands: these go to its node's first socket; "
            "name that with --socket, or the node's runtime directory with --runtime-dir"
        )
    return PeerError(
        f"no nodeserve answers at {node.socket}; start one with `nodeserve serve MODEL`, "
        "or name its socket with --socket"
    )


def _connect(path: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_DEADLINE_S)
        probe.connect(str(path))


def _listens(path: Path) -> bool:
    try:
        _connect(path)
    except OSError:
        return False
    return True


def _check_alive(path: Path, node: Node) -> None:
    """Fail at once where nobody listens: ZeroMQ would wait for somebody to come."""
    try:
        _connect(path)
    except PermissionError:
        raise PeerError(
            f"nodeserve at {node.socket} takes commands from its own user only; "
            "run this as that user"
        ) from None
    except OSError:
        raise nobody_answers(node) from None

"""Sockets that the service manager has opened for the daemon, sd_listen_fds(3)."""

import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Final

from nodeserve.config.node import Listener
from nodeserve.errors import ConfigError
from nodeserve.supervisor.exec_child import FIRST_FD

_UNNAMED: Final = "unknown"
"""What the manager calls a socket without ``FileDescriptorName=``."""

Activated = Mapping[str, socket.socket]
"""Listening sockets by the names of the listeners that they are for."""


def take_sockets(environ: MutableMapping[str, str], pid: int) -> dict[str, list[socket.socket]]:
    """Return the sockets passed to the process ``pid`` by their ``FileDescriptorName=``.

    The variables that say so are removed and the sockets are not inherited by programs that
    the process executes, so that no child takes them for its own.
    """
    is_ours = environ.get("LISTEN_PID") == str(pid)
    count = environ.get("LISTEN_FDS", "")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"):
        environ.pop(variable, None)
    taken: dict[str, list[socket.socket]] = {}
    if not is_ours or not count.isdigit():
        return taken
    for place in range(int(count)):
        name = names[place] if place < len(names) and names[place] else _UNNAMED
        os.set_inheritable(FIRST_FD + place, False)
        passed = socket.socket(fileno=FIRST_FD + place)
        passed.setblocking(False)
        taken.setdefault(name, []).append(passed)
    return taken


def match_listeners(
    taken: Mapping[str, list[socket.socket]], listeners: Iterable[Listener]
) -> dict[str, socket.socket]:
    """Return the one socket of each listener that the manager has opened.

    A listener without one is bound by the daemon itself. A socket that no listener answers on
    would let its clients wait for ever, and one at another address than the listener's would
    escape the rules for that address: both are refused.

    Raises:
        ConfigError: A socket belongs to no listener, to two, is at another address, or does
            not listen.
    """
    by_name = {listener.name: listener for listener in listeners}
    matched = {}
    for name, sockets in taken.items():
        listener = by_name.get(name)
        if listener is None:
            known = ", ".join(by_name)
            raise ConfigError(
                f"socket unit: passes {_shown(sockets[0])} with FileDescriptorName={name}, and no "
                f"[[listener]] has this name (there are: {known}); add one or disable the unit"
            )
        if len(sockets) > 1:
            raise ConfigError(
                f"socket unit: passes {len(sockets)} sockets for the listener {name}; "
                "give each ListenStream= its own unit and [[listener]]"
            )
        _check(sockets[0], listener)
        matched[name] = sockets[0]
    return matched


def _check(passed: socket.socket, listener: Listener) -> None:
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(
            f"socket unit: what it passes for the listener {listener.name} does not accept "
            "connections; use ListenStream= and Accept=no"
        )
    if not _is_at(passed, listener):
        raise ConfigError(
            f"socket unit: listens on {_shown(passed)}, and listener {listener.name} is configured "
            f"for {listener.address}; make ListenStream= and the [[listener]] equal"
        )


def _is_at(passed: socket.socket, listener: Listener) -> bool:
    if passed.family is socket.AF_UNIX:
        return listener.socket is not None and Path(_shown(passed)) == Path(listener.socket)
    if listener.host is None:
        return False
    try:
        found = socket.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return False
    return passed.getsockname()[:2] in {address[:2] for *_, address in found}


def _shown(passed: socket.socket) -> str:
    name = passed.getsockname()
    if passed.family is socket.AF_UNIX:
        if isinstance(name, bytes):  # an abstract one
            return os.fsdecode(name.replace(b"\0", b"@", 1))
        return str(name) or "an unnamed socket"
    host = f"[{name[0]}]" if passed.family is socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"

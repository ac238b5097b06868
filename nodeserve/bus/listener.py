"""Client sockets that outlive the gateways behind them.

A Unix socket's path is held by a lock file beside it, ``<path>.lock``, for as long as the
daemon lives: a live daemon's path is refused, a dead one's is taken over.
"""

import errno
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path
from typing import Final, Self

from nodeserve.config.paths import MAX_PATH_BYTES
from nodeserve.errors import ConfigError

BACKLOG: Final = 4096
"""Connections that wait while a gateway restarts; the kernel caps it at net.core.somaxconn."""

_PROBE_S: Final = 1.0

_SO_NETNS_COOKIE: Final = 71
"""Source: asm-generic/socket.h."""


class UnixListener:
    """A listening Unix socket, its path and the lock on it.

    Attributes:
        lock_fd: Holds the lock for as long as it is open.
        socket: Listens; close it by ``close``, which also removes the path.
    """

    def __init__(self, path: Path, *, mode: int, group: str | None) -> None:
        """Bind ``path`` with these permission bits and group.

        Nobody can connect between bind and chmod: the socket is made with mode 0.

        Raises:
            ConfigError: The path is too long, held by a live daemon or by another kind of
                file, or its directory or group can't be used.
        """
        num_bytes = len(os.fsencode(path))
        if num_bytes > MAX_PATH_BYTES:
            raise ConfigError(
                f"socket {path}: has {num_bytes} bytes, the kernel takes at most "
                f"{MAX_PATH_BYTES}; choose a shorter path"
            )
        self.path = path
        self.lock_fd = _lock(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_dead(path)
            self._bind(mode, group)
        except BaseException:
            self.socket.close()
            os.close(self.lock_fd)
            raise

    @classmethod
    def taken_over(cls, path: Path, *, socket_fd: int, lock_fd: int) -> Self:
        """Return the listener that this process held before, by its two fds."""
        held = cls.__new__(cls)
        held.path = path
        held.lock_fd = lock_fd
        held.socket = socket.socket(fileno=socket_fd)
        return held

    @property
    def fds(self) -> tuple[int, ...]:
        """What to keep open, in this order, to hold the socket and its lock."""
        return (self.socket.fileno(), self.lock_fd)

    def stop_accepting(self) -> None:
        """Remove the path, so that new clients are refused; connected ones stay."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop listening and remove the path and its lock. May be called twice."""
        if self.socket.fileno() < 0:
            return
        self.socket.close()
        self.path.unlink(missing_ok=True)
        _lock_path(self.path).unlink(missing_ok=True)
        os.close(self.lock_fd)

    def _bind(self, mode: int, group: str | None) -> None:
        before = os.umask(0o777)
        try:
            self.socket.bind(str(self.path))
        except OSError as error:
            raise ConfigError(
                f"socket {self.path}: cannot be bound: {error.strerror}; choose another path"
            ) from error
        finally:
            os.umask(before)
        try:
            if group is not None:
                os.chown(self.path, -1, grp.getgrnam(group).gr_gid)
            self.path.chmod(mode)
            self.socket.listen(BACKLOG)
        except (KeyError, OSError) as error:
            self.path.unlink(missing_ok=True)
            raise ConfigError(
                f"socket {self.path}: mode {mode:04o} and group {group} cannot be set: {error}"
            ) from error
        self.socket.setblocking(False)


class TcpListener:
    """A listening TCP socket.

    Attributes:
        socket: Listens; close it by ``close``.
    """

    def __init__(self, host: str, port: int) -> None:
        """Bind ``host``, a name or an address, and ``port``.

        Raises:
            ConfigError: The host is unknown or not of this machine, or the port is taken.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except socket.gaierror as error:
            raise ConfigError(f"listener {host}:{port}: no such host: {error.strerror}") from error
        family, kind, protocol, _, address = found[0]
        self.socket = socket.socket(family, kind, protocol)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(address)
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.socket.close()
            what = "is taken by another process" if error.errno == errno.EADDRINUSE else str(error)
            raise ConfigError(f"listener {host}:{port}: {what}; choose another address") from error
        self.socket.setblocking(False)

    @classmethod
    def taken_over(cls, socket_fd: int) -> Self:
        """Return the listener that this process held before, by its fd."""
        held = cls.__new__(cls)
        held.socket = socket.socket(fileno=socket_fd)
        return held

    @property
    def fds(self) -> tuple[int, ...]:
        """What to keep open to hold the socket."""
        return (self.socket.fileno(),)

    def stop_accepting(self) -> None:
        """Close our part: new clients are refused once its gateways have closed theirs."""
        self.socket.close()

    def close(self) -> None:
        """Stop listening. May be called twice."""
        self.socket.close()


class AdoptedListener:
    """A socket that the service manager listens on; it was there before this daemon and stays.

    Attributes:
        socket: Listens; close it by ``close``, which leaves the manager's own.
    """

    def __init__(self, listening: socket.socket) -> None:
        self.socket = listening

    @property
    def fds(self) -> tuple[int, ...]:
        """What to keep open to hold the socket."""
        return (self.socket.fileno(),)

    @property
    def reachable(self) -> bool:
        """Whether this process could connect to it: not to TCP in another network namespace.

        A service with ``PrivateNetwork=yes`` keeps serving a socket that was opened outside.
        """
        if self.socket.family is socket.AF_UNIX:
            return True
        with socket.socket(self.socket.family) as own:
            return _network_of(own) == _network_of(self.socket)

    def stop_accepting(self) -> None:
        """Do nothing: who connects from now on waits for the next daemon."""

    def close(self) -> None:
        """Give up our part of it. May be called twice."""
        self.socket.close()


def _network_of(any_socket: socket.socket) -> bytes:
    """Return what tells network namespaces apart; empty on kernels before 5.14."""
    try:
        return any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return b""


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _lock(path: Path) -> int:
    """Take the lock on ``path`` and write our pid into it; it ends with this process.

    A holder removes its lock file when it closes, so the file that we locked may be gone from
    its name: then we look again.
    """
    lock = _lock_path(path)
    while True:
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(
                f"socket {path}: its lock {lock} cannot be made: {error.strerror}; "
                "choose a path in a directory that exists and is yours"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise ConfigError(
                f"socket {path}: nodeserve is already running there, pid {holder}; "
                "stop it or choose another path"
            ) from None
        if _is_at(fd, lock):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            return fd
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _remove_dead(path: Path) -> None:
    """Remove the socket that a dead process left; refuse what lives or is no socket."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(
            f"socket {path}: a file that is no socket is there; move it or choose another path"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(
                f"socket {path}: cannot be probed: {error}; see who owns it"
            ) from error
    raise ConfigError(
        f"socket {path}: another program listens there; stop it or choose another path"
    )

"""Unix socket addresses for ZeroMQ: how long, how private, and never on top of a live one."""

import os
import socket
import stat
from pathlib import Path
from typing import Final

from nodeserve.config.paths import MAX_PATH_BYTES
from nodeserve.errors import ConfigError, PeerError

SCHEME: Final = "ipc://"


_PROBE_S: Final = 1.0


def ipc_address(path: Path) -> str:
    """Return the ZeroMQ address of a Unix socket at ``path``.

    Raises:
        ConfigError: The path is relative or longer than the kernel takes.
    """
    num_bytes = len(os.fsencode(path))
    if num_bytes > MAX_PATH_BYTES:
        message = (
            f"socket path {path} has {num_bytes} bytes, the kernel takes {MAX_PATH_BYTES}; "
            "choose a shorter runtime directory"
        )
        raise ConfigError(message)
    if not path.is_absolute():
        message = f"socket path {path} is relative; name it from the root directory"
        raise ConfigError(message)
    return f"{SCHEME}{path}"


def path_of(address: str) -> Path:
    """Return the path inside an ``ipc://`` address.

    Raises:
        ConfigError: It is another kind of address, an abstract name (which the whole network
            namespace could connect to), or a path that ``ipc_address`` refuses.
    """
    name = address.removeprefix(SCHEME)
    if name == address or name.startswith("@"):
        message = f"socket address {address} is not {SCHEME}<path>; give a file system path"
        raise ConfigError(message)
    path = Path(name)
    ipc_address(path)
    return path


def claim_path(path: Path) -> None:
    """Make ``path`` free to bind: refuse a live socket, remove the file of a dead one.

    A second ZeroMQ bind on a live path succeeds and steals it, so we look before.

    Raises:
        ConfigError: The directory is missing, or open to others than its owner, us.
        PeerError: Somebody listens there, or what lies there is not a socket.
    """
    check_private(path.parent)
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        message = f"socket path {path} is taken by a file that is not a socket; move it away"
        raise PeerError(message)
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
            message = f"socket path {path} cannot be probed ({error}); see who owns it"
            raise PeerError(message) from error
    message = f"socket path {path} is live: another process listens there; stop it first"
    raise PeerError(message)


def check_private(directory: Path) -> None:
    """Refuse a directory that is missing, or that others than its owner, us, can enter.

    Raises:
        ConfigError: With its mode and owner.
    """
    try:
        status = directory.stat()
    except OSError as error:
        message = (
            f"socket directory {directory} cannot be used: {error.strerror}; create it, mode 0700"
        )
        raise ConfigError(message) from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 or status.st_uid != os.geteuid():
        message = (
            f"socket directory {directory} has mode {mode:04o} and owner {status.st_uid}; "
            f"it must be 0700 and ours ({os.geteuid()}), for whoever connects can command us"
        )
        raise ConfigError(message)

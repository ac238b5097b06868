"""Where sockets and the runtime directory go when nobody says, and whether they fit."""

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nodeserve.errors import ConfigError

MAX_PATH_BYTES: Final = 107
"""Source: unix(7), sun_path holds 108 bytes with its terminating NUL."""

LONGEST_INTERNAL_NAME: Final = "kv-events-65535.sock"
"""No internal socket has a longer name."""

STORE_SUFFIX: Final = ".store"

LEDGER_NAME: Final = "ledger.db"
"""The ledger's file in a node's state directory."""

INTERNALS_SUFFIX: Final = ".d"

MAX_OWN_SOCKET_BYTES: Final = (
    MAX_PATH_BYTES - len(INTERNALS_SUFFIX) - 1 - len(LONGEST_INTERNAL_NAME)
)
"""For a node's own socket, beside which its internal sockets lie, unless they are told where."""

SOCKET_NAME: Final = "api.sock"

SERVICE_SOCKET: Final = Path("/run/nodeserve/api.sock")
"""``ListenStream=`` of nodeserve.socket: where the machine's own node is, for all its users."""


def default_directory(environ: Mapping[str, str], uid: int) -> Path:
    """Return the directory of the default socket: systemd's, the user's, or a private one.

    ``RUNTIME_DIRECTORY`` may name several, separated by colons: the first is ours. The last
    resort, ``/tmp/nodeserve-<uid>``, must pass ``prepare_directory`` before use.
    """
    from_systemd = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if from_systemd:
        return Path(from_systemd)
    from_session = environ.get("XDG_RUNTIME_DIR", "")
    if from_session:
        return Path(from_session) / "nodeserve"
    if uid == 0:
        return Path("/run/nodeserve")
    return _last_resort(uid)


def default_socket(environ: Mapping[str, str], uid: int) -> Path:
    """Return where a node listens when nobody says."""
    return default_directory(environ, uid) / SOCKET_NAME


def find_socket(environ: Mapping[str, str], uid: int, *, service: Path = SERVICE_SOCKET) -> Path:
    """Return where a client looks when nobody says: the user's own node, else the machine's."""
    own = default_socket(environ, uid)
    return service if service.exists() and not own.exists() else own


def state_directories(environ: Mapping[str, str], uid: int, runtime_dir: Path) -> tuple[Path, Path]:
    """Return where a node may keep what is worth keeping over restarts, the better place first.

    Systemd's, the machine's or the user's; and below ``runtime_dir``, which a clean end removes.
    """
    from_systemd = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if from_systemd:
        wanted = Path(from_systemd)
    elif uid == 0:
        wanted = Path("/var/lib/nodeserve")
    else:
        home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "~"), ".local", "state")
        wanted = Path(home).expanduser() / "nodeserve"
    return wanted, runtime_dir / "state"


def state_directory(environ: Mapping[str, str], uid: int, runtime_dir: Path) -> Path:
    """Return the first of the ``state_directories`` that can be had; makes it if need be."""
    for path in state_directories(environ, uid, runtime_dir):
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(path, os.W_OK | os.X_OK):
                return path
    return runtime_dir


def find_ledger(environ: Mapping[str, str], uid: int, runtime_dir: Path) -> Path:
    """Return where a node of ``runtime_dir`` keeps its ledger; it need not be there."""
    places = [place / LEDGER_NAME for place in state_directories(environ, uid, runtime_dir)]
    return next((path for path in places if path.exists()), places[0])


def internals_of(socket: Path) -> Path:
    """Return the directory of the internal sockets and logs of the node at ``socket``."""
    return socket.with_name(socket.name + INTERNALS_SUFFIX)


def control_socket(runtime_dir: Path) -> Path:
    """Return where the supervisor takes commands."""
    return runtime_dir / "control.sock"


def new_engine_store(runtime_dir: Path, generation: int) -> Path:
    """Return a file in which the ranks of a worker's engine can meet.

    On CPUs vLLM names memory that is shared machine-wide after it, so no other has its name.
    """
    return runtime_dir / f"{_engine(generation)}{secrets.token_hex(8)}{STORE_SUFFIX}"


def engine_stores(runtime_dir: Path, generation: int) -> list[Path]:
    """Return those of a worker's engine that there are."""
    return list(runtime_dir.glob(f"{_engine(generation)}*{STORE_SUFFIX}"))


def path_problem(path: Path, max_bytes: int = MAX_PATH_BYTES) -> str | None:
    """Return why a Unix socket cannot have this path, reading on from its key; None if it can.

    ``max_bytes`` is ``MAX_OWN_SOCKET_BYTES`` where the internal sockets lie beside it.
    """
    num_bytes = len(os.fsencode(path))
    if num_bytes <= max_bytes:
        return None
    why = f"the kernel takes socket paths of at most {MAX_PATH_BYTES}"
    if max_bytes < MAX_PATH_BYTES:
        why += f", and the internal ones below PATH{INTERNALS_SUFFIX} leave {max_bytes}"
    return f"is {path}, {num_bytes} bytes long; {why}: choose a shorter one"


def runtime_dir_problem(path: Path) -> str | None:
    """Return why internal sockets do not fit below ``path``; None when they do."""
    num_bytes = len(os.fsencode(path / LONGEST_INTERNAL_NAME))
    if num_bytes <= MAX_PATH_BYTES:
        return None
    room = MAX_PATH_BYTES - len(LONGEST_INTERNAL_NAME) - 1
    return (
        f"is {path}, {len(os.fsencode(path))} bytes long; internal socket paths end at "
        f"{MAX_PATH_BYTES} bytes, so it may have at most {room}: choose a shorter one"
    )


def prepare_directory(path: Path, uid: int) -> None:
    """Make the directory of a client socket, if need be.

    The last resort lies where everybody can write, so it must be private and ours.

    Raises:
        ConfigError: It can't be made, or the last resort is a link, belongs to somebody else
            or is open to others.
    """
    private = path == _last_resort(uid)
    try:
        path.mkdir(mode=0o700 if private else 0o755, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"socket directory {path}: cannot be used: {error.strerror}; choose another --socket"
        ) from error
    if private and (stat.S_ISLNK(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077):
        raise ConfigError(
            f"socket directory {path}: has owner {found.st_uid} and mode "
            f"{found.st_mode & 0o777:04o}, it must be {uid}'s and 0700; remove it or choose "
            "another --socket"
        )


def _engine(generation: int) -> str:
    return f"engine-{generation}-"


def _last_resort(uid: int) -> Path:
    return Path(f"/tmp/nodeserve-{uid}")  # noqa: S108  (prepare_directory refuses another's)

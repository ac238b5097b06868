"""The runtime directory: private, owned by one daemon at a time, gone after a clean end."""

import contextlib
import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import Final, Self

from nodeserve.bus.endpoints import check_private, ipc_address
from nodeserve.config.paths import STORE_SUFFIX, engine_stores
from nodeserve.errors import ConfigError
from nodeserve.ids import Generation

_PRIVATE_MODE: Final = 0o700

_MAX_TAIL_BYTES: Final = 64 << 10

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
"""vllm-rs writes them into its log too."""


_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (where shm_open has it)


def kv_events_name(generation: Generation) -> str:
    """Return the name of the socket at which a worker tells of its prefix cache."""
    return f"kv-{generation}"


class RuntimeDirectory:
    """Paths of the node's own sockets and logs, under a lock that dies with its holder.

    Attributes:
        path: The directory.
        lock_fd: Holds the lock for as long as it is open.
    """

    def __init__(self, path: Path) -> None:
        """Create the directory if need be, check that it is ours alone, and lock it.

        Raises:
            ConfigError: It belongs to somebody else, others can enter it, or a live daemon
                holds it.
        """
        self.path = path
        try:
            path.mkdir(mode=_PRIVATE_MODE, parents=True, exist_ok=True)
            self.lock_fd = self._lock()
        except OSError as error:
            why = f"cannot be used: {error.strerror}; choose another --socket"
            text = f"runtime directory {path} {why}"
            raise ConfigError(text) from error
        self._remove_leftovers()
        self.log_dir.mkdir(mode=_PRIVATE_MODE, exist_ok=True)
        for old in self.log_dir.glob("*.log"):
            old.unlink(missing_ok=True)

    @classmethod
    def taken_over(cls, path: Path, lock_fd: int) -> Self:
        """Return the directory that this process held before, with all that is in it."""
        held = cls.__new__(cls)
        held.path, held.lock_fd = path, lock_fd
        return held

    @property
    def log_dir(self) -> Path:
        """Where each process's output goes, one file per name."""
        return self.path / "logs"

    @property
    def second_names(self) -> Path:
        """Where socket files have their second names, below the directory."""
        return self.path / "kept"

    def address(self, name: str) -> str:
        """Return the ZeroMQ address of the internal socket ``name``."""
        return ipc_address(self.path / f"{name}.sock")

    def log_path(self, name: str) -> Path:
        """Return the log file of the process ``name``."""
        return self.log_dir / f"{name}.log"

    def log_tail(self, name: str, start: int = 0, num_lines: int = 8) -> list[str]:
        """Return the last lines of a process's log that are not empty.

        ``start`` is the size in bytes that the log had when the incarnation in question began:
        what stands before it was said by earlier ones.
        """
        try:
            with self.log_path(name).open("rb") as log:
                log.seek(max(start, log.seek(0, os.SEEK_END) - _MAX_TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return []
        plain = _COLOURS.sub("", text)
        return [line.rstrip() for line in plain.splitlines() if line.strip()][-num_lines:]

    def forget(self, generation: Generation) -> None:
        """Remove what an incarnation that is gone may have left: a killed one cleans up nothing.

        What cannot be looked for now, as when no file can be opened, goes with the directory.
        """
        with contextlib.suppress(OSError):
            for store in engine_stores(self.path, generation):
                _remove_store(store)
        with contextlib.suppress(OSError):
            (self.path / f"{kv_events_name(generation)}.sock").unlink(missing_ok=True)

    def close(self, *, keep_logs: bool) -> None:
        """Remove what the daemon made; after a failure the logs, if any, stay for whoever looks."""
        self._remove_leftovers()
        if keep_logs and any(self.log_dir.iterdir()):
            (self.path / "lock").unlink(missing_ok=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock_fd)

    def _lock(self) -> int:
        check_private(self.path)
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            text = f"runtime directory {self.path}: nodeserve is already running, pid {holder}"
            raise ConfigError(text) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def _remove_leftovers(self) -> None:
        for store in self.path.glob(f"*{STORE_SUFFIX}"):
            _remove_store(store)
        patterns = ("*.sock", "*.counts")
        for leftover in [path for pattern in patterns for path in self.path.glob(pattern)]:
            leftover.unlink(missing_ok=True)
        shutil.rmtree(self.second_names, ignore_errors=True)


def _remove_store(store: Path) -> None:
    """Remove it with what vLLM names after it: memory of ranks that died before they had loaded."""
    for memory in _SHARED_MEMORY.glob(f"{store.name}-*"):
        memory.unlink(missing_ok=True)
    store.unlink(missing_ok=True)

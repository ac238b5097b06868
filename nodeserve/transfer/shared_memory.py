"""KV pools in host memory: an anonymous file that peers map through /proc.

The owner of a pool keeps the file descriptor; a peer opens ``/proc/<pid>/fd/<fd>`` and maps the
same pages. There is no name to clean up, and mapped bytes outlive their owner. Process ids and
file descriptors are reused, so a handle also carries the file's identity.
"""

import ctypes
import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nodeserve.errors import CapacityError, PeerError
from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.base import Handle

TRANSPORT: Final = "shared_memory"

# Not in Python's fcntl before 3.13. Source: linux/fcntl.h.
_F_ADD_SEALS: Final = 1033
_F_SEAL_SEAL: Final = 0x1
_F_SEAL_SHRINK: Final = 0x2
_F_SEAL_GROW: Final = 0x4

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


class SharedMemory:
    """Memory of this process that peers can map: a sealed memfd of fixed size."""

    def __init__(self, name: str, num_bytes: int) -> None:
        """Create the file, all zeros; ``name`` shows in /proc for people.

        Raises:
            CapacityError: The kernel gives no more files or memory.
        """
        try:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, num_bytes)
        except OSError as error:
            text = f"shared memory {name}: cannot create {num_bytes} bytes: {error}"
            raise CapacityError(text) from error
        # A file that shrank would kill its readers with SIGBUS.
        fcntl.fcntl(self.fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
        self.num_bytes = num_bytes

    @property
    def path(self) -> str:
        """Where this process can open the file once more."""
        return f"/proc/self/fd/{self.fd}"

    def handle(self) -> Handle:
        """Return what a peer needs to open this memory while this process lives."""
        return handle_of(self.fd)

    def close(self) -> None:
        """Close the file. Whoever has it mapped keeps the bytes."""
        os.close(self.fd)


def open_memory(handle: Handle, flags: int) -> int:
    """Return a file descriptor of the memory that ``handle`` describes.

    Args:
        handle: From ``SharedMemory.handle``.
        flags: ``os.O_RDONLY`` or ``os.O_RDWR``.

    Raises:
        PeerError: The owner is gone, hides its files, or the handle is stale or malformed.
    """
    pid, fd, *identity = _numbers(handle)
    path = f"/proc/{pid}/fd/{fd}"
    try:
        opened = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        text = f"cannot open the memory of process {pid}: {error}; it has probably ended"
        raise PeerError(text) from error
    found = _identity(os.fstat(opened))
    if found != identity:
        os.close(opened)
        text = (
            f"{path} is another file by now: device, inode and bytes are {found}, "
            f"were {identity}; the process that owned it has ended"
        )
        raise PeerError(text)
    return opened


def handle_of(fd: int) -> Handle:
    """Return what a peer needs to open the memory in file ``fd`` while this process has it."""
    status = os.fstat(fd)
    return {
        "transport": TRANSPORT,
        "pid": os.getpid(),
        "fd": fd,
        "device": status.st_dev,
        "inode": status.st_ino,
        "bytes": status.st_size,
    }


class MappedMemory:
    """A peer's shared memory, mapped read-only at ``address``."""

    def __init__(self, handle: Handle) -> None:
        """Open and map what ``handle`` describes.

        Raises:
            PeerError: The owner is gone, hides its files, or the handle is stale or malformed.
        """
        pid, fd, *self._identity = _numbers(handle)
        self.num_bytes = self._identity[-1]
        self._path = f"/proc/{pid}/fd/{fd}"
        opened = open_memory(handle, os.O_RDONLY)
        self.address: int = _LIBC.mmap(
            None, self.num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, opened, 0
        )
        os.close(opened)
        if self.address == _MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            text = f"cannot map {self.num_bytes} bytes of process {pid}: {reason}"
            raise PeerError(text)

    def is_current(self) -> bool:
        """Return whether the owner still has this memory."""
        try:
            return _identity(Path(self._path).stat()) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Unmap. The address is invalid from here on."""
        _LIBC.munmap(self.address, self.num_bytes)


class SharedMemoryPool:
    """A peer's pool in shared memory, with copies into one pool of this process."""

    def __init__(self, memory: MappedMemory, destination: int, destination_bytes: int) -> None:
        """Copy from ``memory`` to ``destination_bytes`` bytes at address ``destination``."""
        self._memory = memory
        self._destination = destination
        self._destination_bytes = destination_bytes

    def copy(self, runs: Sequence[CopyRun]) -> None:
        """Copy ``runs``; other threads run meanwhile, since each copy lets go of the GIL."""
        source_bytes, destination_bytes = self._memory.num_bytes, self._destination_bytes
        for source, destination, length in runs:
            if (
                source < 0
                or destination < 0
                or length < 0
                or source + length > source_bytes
                or destination + length > destination_bytes
            ):
                run = CopyRun(source, destination, length)
                text = (
                    f"{run} is not inside pools of {source_bytes} and {destination_bytes} bytes; "
                    "recompute the prompt"
                )
                raise PeerError(text)
        memmove, theirs, ours = ctypes.memmove, self._memory.address, self._destination
        for source, destination, length in runs:
            memmove(ours + destination, theirs + source, length)

    def is_current(self) -> bool:
        """Return whether the owner still has the pool."""
        return self._memory.is_current()

    def close(self) -> None:
        """Unmap the peer's pool."""
        self._memory.close()


class SharedMemoryImporter:
    """Opens peers' pools in shared memory for copies into one pool of this process."""

    def __init__(self, address: int, num_bytes: int) -> None:
        """Copy into ``num_bytes`` bytes at ``address``, which must outlive every opened pool."""
        self._address = address
        self._num_bytes = num_bytes

    def open(self, handle: Handle) -> SharedMemoryPool:
        """Map the pool that ``handle`` describes.

        Raises:
            PeerError: Its owner is gone, or the handle is of something else by now.
        """
        return SharedMemoryPool(MappedMemory(handle), self._address, self._num_bytes)


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size]


def _numbers(handle: Handle) -> list[int]:
    names = ("pid", "fd", "device", "inode", "bytes")
    values: list[Any] = [handle.get(name) for name in names]
    transport = handle.get("transport")
    if transport != TRANSPORT or not all(type(v) is int and v >= 0 for v in values):
        text = f"a peer's memory handle is malformed: transport {transport!r}, {names} = {values}"
        raise PeerError(text)
    return values

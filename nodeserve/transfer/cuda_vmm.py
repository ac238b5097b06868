"""KV pools in GPU memory that is shared by file descriptor and outlives its owner.

A peer takes the descriptor out of its owner by pidfd_getfd and maps the memory, which exists while
any mapping does: what was mapped in time can still be read when the owner has ended.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from nodeserve.errors import PeerError
from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.base import Handle
from nodeserve.transfer.cuda_copier import CudaCopier
from nodeserve.transfer.cuda_ipc import addressed_runs, require_other_process
from nodeserve.transfer.owner import Owner, started_ticks

TRANSPORT: Final = "cuda_vmm"

_NUMBERS: Final = ("pid", "started", "fd", "bytes", "mapped_bytes")

_SYS_PIDFD_GETFD: Final = 438
"""On every architecture. Source: linux/unistd.h (5.6)."""

_PR_SET_PTRACER: Final = 0x59616D61
_PR_SET_PTRACER_ANY: Final = ctypes.c_ulong(-1)

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Mapped(Protocol):
    """A piece of GPU memory, mapped here."""

    address: int

    def close(self) -> None:
        """Unmap."""
        ...


class Exported(Protocol):
    """Memory of this process with a descriptor; device.cuda_vmm.VmmMemory is one."""

    fd: int
    address: int
    num_bytes: int


Map = Callable[[int, int], Mapped]
"""Maps what a descriptor stands for, so many bytes of it."""


def export_memory(memory: Exported, uuid: str, pool_bytes: int) -> Handle:
    """Return the handle of a pool at the start of ``memory``, on the GPU ``uuid``."""
    # Yama lets only parents take descriptors otherwise; it is not there on every kernel.
    none = ctypes.c_ulong(0)
    _LIBC.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, none, none, none)
    return {
        "transport": TRANSPORT,
        "pid": os.getpid(),
        "started": started_ticks(os.getpid()),
        "uuid": uuid,
        "fd": memory.fd,
        "bytes": pool_bytes,
        "mapped_bytes": memory.num_bytes,
    }


class CudaVmmPool:
    """A peer's pool, mapped by descriptor, with copies into one pool of this process."""

    def __init__(self, importer: "CudaVmmImporter", handle: Handle) -> None:
        """Map what ``handle`` describes; use CudaVmmImporter.open."""
        self._importer = importer
        self._num_bytes = int(handle["bytes"])
        self._same_gpu = handle["uuid"] == importer.uuid
        self._owner = Owner(int(handle["pid"]), int(handle["started"]))
        try:
            fd = _take_fd(self._owner, int(handle["fd"]))
            try:
                self._mapped = importer.map(fd, int(handle["mapped_bytes"]))
            finally:
                os.close(fd)
        except PeerError:
            self._owner.close()
            raise

    def copy(self, runs: Sequence[CopyRun]) -> None:
        """Copy ``runs``, whether the owner lives or not; other threads run meanwhile."""
        addressed = addressed_runs(runs, self._mapped.address, self._num_bytes, self._importer)
        copier = self._importer.copier
        (copier.copy_on_device if self._same_gpu else copier.copy)(addressed, None)

    def is_current(self) -> bool:
        """Return whether the owner lives."""
        return self._owner.is_alive()

    def close(self) -> None:
        """Unmap the peer's pool."""
        self._mapped.close()
        self._owner.close()


class CudaVmmImporter:
    """Opens peers' pools by descriptor for copies into one pool of this process."""

    def __init__(
        self, uuid: str, map_fd: Map, copier: CudaCopier, address: int, num_bytes: int
    ) -> None:
        """Copy into ``num_bytes`` bytes at ``address`` on the GPU ``uuid``, by ``copier``."""
        self.uuid = uuid
        self.map = map_fd
        self.copier = copier
        self.address = address
        self.num_bytes = num_bytes

    def open(self, handle: Handle) -> CudaVmmPool:
        """Map the pool that ``handle`` describes.

        Raises:
            PeerError: The owner has ended, is this process itself, or keeps its descriptors from
                us; or the handle is malformed.
        """
        numbers = [handle.get(name) for name in _NUMBERS]
        if (
            handle.get("transport") != TRANSPORT
            or type(handle.get("uuid")) is not str
            or not all(type(n) is int and n >= 0 for n in numbers)
            or not 0 < int(handle["bytes"]) <= int(handle["mapped_bytes"])
        ):
            text = f"a peer's GPU memory handle is malformed: {handle}; restart that worker"
            raise PeerError(text)
        require_other_process(int(handle["pid"]))
        return CudaVmmPool(self, handle)


def _take_fd(owner: Owner, fd: int) -> int:
    long = ctypes.c_long
    # pidfd_getfd sets close-on-exec by itself.
    taken: int = _LIBC.syscall(long(_SYS_PIDFD_GETFD), long(owner.fd), long(fd), long(0))
    if taken < 0:
        reason = os.strerror(ctypes.get_errno())
        text = (
            f"process {owner.pid} does not give up its descriptor {fd}: {reason}; it has ended, or "
            "ptrace is restricted: use the transport cuda_ipc"
        )
        raise PeerError(text)
    return taken

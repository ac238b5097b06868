"""Memory for the host tier: arenas of equal size and the slot directory, as sealed memfds.

Arena ``i`` lies on NUMA node ``i`` modulo their number, where there is more than one. Pages are
2 MiB ones of the kernel's pool where enough of them are free, else ordinary ones that may be
joined to huge ones by whoever maps them; they are taken as they are first written.
"""

import ctypes
import fcntl
import logging
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeserve.errors import CapacityError
from nodeserve.transfer.slot_directory import directory_bytes

HUGE_PAGE_BYTES: Final = 2 << 20
SMALLEST_SLOT_BYTES: Final = 4096

_LOG: Final = logging.getLogger(__name__)

_SYSTEM: Final = Path("/sys/devices/system/node")
_HUGE_PAGES: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")

_SYS_MBIND: Final = {"x86_64": 237, "aarch64": 235}
"""Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h."""

_MPOL_PREFERRED: Final = 1
"""Another node's memory, rather than none. Source: include/uapi/linux/mempolicy.h."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Arenas:
    """The host tier's files: what the block manager is given, in that order.

    ``directory_fd`` has room for the entries of the smallest slots. ``is_huge`` is whether the
    arenas are made of the kernel's pool of huge pages.
    """

    directory_fd: int
    arena_fds: tuple[int, ...]
    arena_bytes: int
    is_huge: bool

    @property
    def fds(self) -> list[int]:
        """The directory's, then the arenas'."""
        return [self.directory_fd, *self.arena_fds]


def create_arenas(total_bytes: int, arena_bytes: int, *, nodes: Sequence[int] = ()) -> Arenas:
    """Return arenas of ``total_bytes`` in all, a multiple of ``arena_bytes``, and a directory.

    ``nodes`` are the NUMA nodes to spread them over; none for wherever they are first written.
    The caller owns the file descriptors.

    Raises:
        CapacityError: The kernel gives no more files or memory.
    """
    num_arenas = total_bytes // arena_bytes
    fds: list[int] = []
    try:
        entries = directory_bytes(total_bytes // SMALLEST_SLOT_BYTES)
        fds.append(_create("nodeserve-kv-slots", entries))
        is_huge = arena_bytes % HUGE_PAGE_BYTES == 0 and free_huge_bytes() >= total_bytes
        for number in range(num_arenas):
            fds.append(_create_arena(number, arena_bytes, is_huge=is_huge))
            if len(nodes) > 1:
                _bind(fds[-1], arena_bytes, nodes[number % len(nodes)])
    except OSError as error:
        for fd in fds:
            os.close(fd)
        text = (
            f"host tier: {num_arenas} arenas of {arena_bytes} bytes cannot be had: "
            f"{error.strerror}; lower kv.host.size or raise the daemon's limits"
        )
        raise CapacityError(text) from error
    return Arenas(fds[0], tuple(fds[1:]), arena_bytes, is_huge)


def memory_nodes(system: Path = _SYSTEM) -> list[int]:
    """Return the NUMA nodes that have memory; empty where the kernel does not say."""
    try:
        return _numbers((system / "has_memory").read_text())
    except (OSError, ValueError):
        return []


def free_huge_bytes(pool: Path = _HUGE_PAGES) -> int:
    """Return what is left of the kernel's pool of 2 MiB pages and promised to nobody."""
    try:
        free = int((pool / "free_hugepages").read_text())
        promised = int((pool / "resv_hugepages").read_text())
    except (OSError, ValueError):
        return 0
    return max(0, free - promised) * HUGE_PAGE_BYTES


def advise_huge_pages(address: int, num_bytes: int) -> bool:
    """Ask for huge pages where this mapping is first written; return whether the kernel agrees.

    Harmless where the file is of huge pages already, or the kernel joins none in shared memory.
    """
    pointer, size = ctypes.c_void_p(address), ctypes.c_size_t(num_bytes)
    return int(_LIBC.madvise(pointer, size, mmap.MADV_HUGEPAGE)) == 0


def _create_arena(number: int, num_bytes: int, *, is_huge: bool) -> int:
    name = f"nodeserve-kv-{number}"
    if not is_huge:
        return _create(name, num_bytes)
    fd = _create(name, num_bytes, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    try:
        # Mapping it once takes the pages out of the pool for the file's life: a later first
        # write cannot end in SIGBUS because others were faster.
        mmap.mmap(fd, num_bytes).close()
    except OSError:
        os.close(fd)
        raise
    return fd


def _create(name: str, num_bytes: int, flags: int = 0) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, num_bytes)
        # A file that shrank would kill its readers with SIGBUS.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


def _bind(fd: int, num_bytes: int, node: int) -> None:
    """Prefer a NUMA node for a file's pages, whoever writes them; slower memory is no failure.

    The policy of shared memory belongs to the file and outlives the mapping it was set by.
    """
    number = _SYS_MBIND.get(os.uname().machine)
    mapped = mmap.mmap(fd, num_bytes)
    start = ctypes.c_char.from_buffer(mapped)
    try:
        mask = ctypes.c_ulong(1 << node)
        arguments = (
            ctypes.c_void_p(ctypes.addressof(start)),
            ctypes.c_ulong(num_bytes),
            ctypes.c_int(_MPOL_PREFERRED),
            ctypes.byref(mask),
            ctypes.c_ulong(8 * ctypes.sizeof(mask) + 1),
            ctypes.c_uint(0),
        )
        if number is None or _LIBC.syscall(ctypes.c_long(number), *arguments):
            reason = os.strerror(ctypes.get_errno()) if number else os.uname().machine
            _LOG.warning("arena_not_bound node=%d reason=%r", node, reason)
    finally:
        del start
        mapped.close()


def _numbers(text: str) -> list[int]:
    """Return what a list such as ``0-1,4`` names."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers

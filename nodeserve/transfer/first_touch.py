"""Takes the pages of shared memory before anybody needs them.

The kernel gives a page when it is first written, which costs more than copying into it: here, on a
virtual machine, 0.6 ms of a MiB against 0.05. A request should not pay for that.
"""

import ctypes
import logging
import mmap
import os
import threading
from collections.abc import Callable
from typing import Final

from nodeserve.transfer.arenas import advise_huge_pages

CHUNK_BYTES: Final = 1 << 20
"""As much at a time: meanwhile nobody else can map or unmap memory of the process."""

PAUSE_S: Final = 0.001
"""Between two of them, for others. A low priority would be no way: it would be waited for."""

_MADV_POPULATE_WRITE: Final = 23
"""Linux 5.14. Source: include/uapi/asm-generic/mman-common.h."""

_LOG: Final = logging.getLogger(__name__)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def touch(fd: int, num_bytes: int, goes_on: Callable[[], bool]) -> bool:
    """Take all pages of a memfd that it has not got, without changing what is in them.

    Args:
        fd: The file's descriptor, which is kept open meanwhile.
        num_bytes: Its size.
        goes_on: Asked before each chunk; False ends it.

    Returns:
        Whether all of them are there. False also where the kernel cannot do it (before Linux
        5.14) or has no memory left: then they are taken when they are written.
    """
    at = 0
    while at < num_bytes and goes_on():
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        at = hole - hole % mmap.PAGESIZE
        if at >= num_bytes:
            break
        length = min(CHUNK_BYTES, num_bytes - at)
        with mmap.mmap(fd, length, offset=at - at % mmap.ALLOCATIONGRANULARITY) as pages:
            if not _populate(ctypes.addressof(ctypes.c_char.from_buffer(pages)), length):
                return False
        at += length
    return at >= num_bytes


def touch_mapped(address: int, num_bytes: int, goes_on: Callable[[], bool]) -> bool:
    """Do the same for memory that is mapped, and for the mapping: its page table is filled too."""
    at = 0
    while at < num_bytes and goes_on():
        length = min(CHUNK_BYTES, num_bytes - at)
        if not _populate(address + at, length):
            return False
        at += length
    return at >= num_bytes


def in_background(name: str, work: Callable[[Callable[[], bool]], bool]) -> Callable[[], None]:
    """Do ``work`` in a thread of its own; it is given ``goes_on``, which pauses.

    Returns:
        Ends it; to be called before the memory is given back.
    """
    ended = threading.Event()

    def run() -> None:
        if work(lambda: not ended.wait(PAUSE_S)):
            _LOG.info("memory_touched name=%s", name)

    thread = threading.Thread(target=run, name=f"touch-{name}"[:15], daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    return end


def _populate(address: int, length: int) -> bool:
    """Let the kernel write to each page; by ctypes, which lets go of the GIL meanwhile."""
    advise_huge_pages(address, length)
    where = ctypes.c_void_p(address), ctypes.c_size_t(length)
    return bool(_LIBC.madvise(*where, _MADV_POPULATE_WRITE) == 0)

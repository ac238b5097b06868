"""CRC32C of memory by its address, at the speed of the processor and without the GIL."""

import ctypes
import mmap
from typing import Final

import crc32c

_LET_GO_OF_THE_GIL: Final = 1

NATIVE: Final = bool(crc32c.hardware_based)
"""Whether the processor computes it; in software it takes ten times as long."""


def memory_at(address: int, num_bytes: int) -> ctypes.Array[ctypes.c_char]:
    """Return a buffer over memory of this process, which the caller keeps mapped meanwhile."""
    return (ctypes.c_char * num_bytes).from_address(address)


def crc32c_at(address: int, num_bytes: int) -> int:
    """Return the CRC32C (Castagnoli, RFC 3720) of memory; other threads run meanwhile."""
    return crc32c.crc32c(memory_at(address, num_bytes), 0, _LET_GO_OF_THE_GIL)


def address_of(buffer: mmap.mmap | memoryview) -> int:
    """Return where a writable buffer lies; the caller keeps it alive meanwhile."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))

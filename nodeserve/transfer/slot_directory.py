"""The page on which the block manager shows engines what each slot of the host tier holds.

Layout: a header page (magic, number of slots, bytes from slot to slot, each 64-bit; 32 bytes of
namespace), then one entry of 64 bytes per slot: sequence (64-bit), state (64-bit), key (32 bytes),
how the key of the block before begins (8 bytes, 0 where that is unknown), tenant (64-bit).

The block manager alone writes. It makes the sequence odd, changes the entry and makes it even
again, and raises it with every change of what a slot holds: a reader that finds the entry equal
before and after its copy has copied the bytes of that key. The entries also outlive the block
manager: its successor builds its index from those that are READY.
"""

import ctypes
import enum
import mmap
import os
import struct
from typing import Final, NamedTuple

from nodeserve.errors import PeerError
from nodeserve.transfer.base import Handle
from nodeserve.transfer.shared_memory import MappedMemory

HEADER_BYTES: Final = 4096
ENTRY_BYTES: Final = 64

_MAGIC: Final = int.from_bytes(b"NSSLOTS1", "little")
_HEADER: Final = struct.Struct("<QQQ32s")
_ENTRY: Final = struct.Struct("<QQ32s8sQ")


class SlotState(enum.IntEnum):
    """What may be done with a slot."""

    FREE = 0
    RESERVED = 1
    READY = 2
    QUARANTINED = 3


class SlotEntry(NamedTuple):
    """One entry of the directory; ``parent`` is of 8 bytes, and of zeros where it is unknown."""

    sequence: int
    state: int
    key: bytes
    parent: bytes
    tenant: int


class SlotShape(NamedTuple):
    """How the host tier is cut into slots, and whose keys they are under."""

    num_slots: int
    slot_stride: int
    namespace: bytes


def directory_bytes(num_slots: int) -> int:
    """Return how large the directory of ``num_slots`` slots is."""
    return HEADER_BYTES + num_slots * ENTRY_BYTES


class SlotDirectory:
    """The block manager's side: the one writer."""

    def __init__(self, fd: int, shape: SlotShape) -> None:
        """Map the directory in file ``fd`` for writing, with what it says, or every slot FREE.

        A predecessor's entries are kept where it cut the tier into the same ``shape``.
        ``adopted`` is whether they were.
        """
        self.shape = shape
        self._map = mmap.mmap(fd, directory_bytes(shape.num_slots))
        self.adopted = _HEADER.unpack_from(self._map) == (_MAGIC, *shape)
        if not self.adopted:
            # The entries first: a header without its entries would be adopted.
            _HEADER.pack_into(self._map, 0, 0, *shape)
            for at in range(HEADER_BYTES, len(self._map), 1 << 20):
                end = min(at + (1 << 20), len(self._map))
                self._map[at:end] = bytes(end - at)
            _HEADER.pack_into(self._map, 0, _MAGIC, *shape)

    def entry(self, slot: int) -> SlotEntry:
        """Return what the directory says of ``slot``."""
        return SlotEntry(*_ENTRY.unpack_from(self._map, _at(slot)))

    def used(self, first: int, end: int) -> dict[int, SlotEntry]:
        """Return the entries of slots ``first`` up to ``end`` that say more than FREE, by slot."""
        some = memoryview(self._map)[_at(first) : _at(min(end, self.shape.num_slots))]
        with some:
            return {
                slot: SlotEntry(*raw)
                for slot, raw in enumerate(_ENTRY.iter_unpack(some), first)
                if raw[1] != SlotState.FREE or raw[0] % 2
            }

    def write(
        self, slot: int, state: SlotState, key: bytes, *, tenant: int, parent: bytes = b""
    ) -> None:
        """Say what ``slot`` holds from now on; readers of what it held before find out.

        ``parent`` is the key of the block before, of which the beginning is kept; b"" for none.
        """
        at = _at(slot)
        (sequence,) = struct.unpack_from("<Q", self._map, at)
        odd = sequence + 1 + sequence % 2  # a predecessor may have died in the middle
        struct.pack_into("<Q", self._map, at, odd)
        _ENTRY.pack_into(self._map, at, odd, state, key, parent, tenant)
        struct.pack_into("<Q", self._map, at, odd + 1)

    def close(self) -> None:
        """Unmap the directory; its file and its readers stay."""
        self._map.close()


def found_shape(fd: int) -> SlotShape | None:
    """Return the shape that a predecessor gave the directory in file ``fd``; None for none."""
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, *shape = _HEADER.unpack(header)
    return SlotShape(*shape) if magic == _MAGIC else None


class SlotDirectoryReader:
    """An engine's side: read-only."""

    def __init__(self, handle: Handle, shape: SlotShape) -> None:
        """Map the directory that ``handle`` describes.

        Raises:
            PeerError: Its owner is gone, or it is no directory of this ``shape``.
        """
        self._memory = MappedMemory(handle)
        self._num_slots = shape.num_slots
        found: tuple[object, ...] = ()
        if self._memory.num_bytes >= directory_bytes(shape.num_slots):
            found = _HEADER.unpack(ctypes.string_at(self._memory.address, _HEADER.size))
        if found != (_MAGIC, *shape):
            self.close()
            text = f"slot directory has header {found}, not one of {shape}"
            raise PeerError(text)

    def require(self, slot: int, key: bytes, state: SlotState = SlotState.READY) -> SlotEntry:
        """Return the entry of ``slot`` if it is ``key``'s and in ``state``.

        Raises:
            PeerError: It is not, or is being changed.
        """
        if not 0 <= slot < self._num_slots:
            text = f"slot {slot} is not one of {self._num_slots}; the prompt is computed here"
            raise PeerError(text)
        raw = ctypes.string_at(self._memory.address + _at(slot), ENTRY_BYTES)
        entry = SlotEntry(*_ENTRY.unpack(raw))
        if entry.state != state or entry.key != key or entry.sequence % 2:
            text = (
                f"slot {slot} does not hold block {key.hex()[:16]} {state.name} any more (state "
                f"{entry.state}, sequence {entry.sequence}); the prompt is computed here"
            )
            raise PeerError(text)
        return entry

    def close(self) -> None:
        """Unmap the directory."""
        self._memory.close()


def _at(slot: int) -> int:
    return HEADER_BYTES + slot * ENTRY_BYTES

"""The host tier's memory as one engine's process has it mapped: arenas to write, a page to read.

A GPU copies directly only from and to host memory that is pinned, which takes 0.1 s a GB and lets
no other call of the driver through meanwhile. So arenas are pinned as they are first used, a piece
at a time; what is not pinned is copied through the driver's own buffers, several times slower.
"""

import ctypes
import math
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from nodeserve.errors import PeerError
from nodeserve.transfer.base import Handle, Pinner
from nodeserve.transfer.shared_memory import open_memory
from nodeserve.transfer.slot_directory import SlotDirectoryReader, SlotShape

PIECE_BYTES: Final = 256 << 20
"""How much is pinned at a time: some 30 ms, in which running requests get no token."""


_Name = tuple[int | str | None, ...]
"""Device, inode and size of a file; while it is mapped no other one has them."""


class Arena:
    """One file of the host tier, mapped whole, which touches no page.

    Nobody closes it: copies that still run hold it, and with the last of them it is unpinned and
    unmapped, in this order: memory that was unmapped while it was pinned stays pinned, and what is
    mapped there next is taken for it.
    """

    def __init__(self, handle: Handle) -> None:
        """Map what ``handle`` describes.

        Raises:
            PeerError: Its owner is gone, or it cannot be mapped.
        """
        opened = open_memory(handle, os.O_RDWR)
        try:
            self._map = mmap.mmap(opened, 0)
        except (OSError, ValueError) as error:
            text = f"cannot map an arena of {handle.get('bytes')} bytes: {error}"
            raise PeerError(text) from error
        finally:
            os.close(opened)
        self._view = ctypes.c_char.from_buffer(self._map)
        self.address: Final = ctypes.addressof(self._view)
        self.num_bytes: Final = len(self._map)
        self._pinners: dict[int, Pinner | None] = {}
        self._lock = threading.Lock()

    def __del__(self) -> None:
        """Unpin; the mapping goes with our attributes, afterwards."""
        for offset, pinner in getattr(self, "_pinners", {}).items():
            if pinner is not None:
                pinner.unregister(self.address + offset)

    def is_pinned(self, offset: int) -> bool:
        """Return whether the piece that begins at ``offset`` is pinned."""
        return self._pinners.get(offset) is not None

    def pin(self, offset: int, num_bytes: int, pinner: Pinner) -> int:
        """Pin a piece, once; returns how many bytes that were, 0 where it was tried before.

        Raises:
            PeerError: The device refuses. It is not asked again.
        """
        with self._lock:
            if offset in self._pinners:
                return 0
            self._pinners[offset] = None
            pinner.register(self.address + offset, num_bytes)
            self._pinners[offset] = pinner
            return num_bytes


class TierMemory:
    """All arenas and the slot directory.

    Attributes:
        mapped: The arenas by what tells their files apart, whoever shows them.
        cut: Slots per arena and bytes from slot to slot: where pieces begin.
    """

    def __init__(
        self,
        shape: SlotShape,
        slots_per_arena: int,
        arenas: Sequence[Handle],
        directory: Handle,
        before: "TierMemory | None" = None,
    ) -> None:
        """Map what the block manager has described.

        Arenas that ``before`` has mapped are taken over with all that is pinned of them: a block
        manager's successor describes the same memory once more.

        Raises:
            PeerError: Its owner is gone, or the arenas do not hold as many slots.
        """
        self.directory: Final = SlotDirectoryReader(directory, shape)
        self.cut: Final = (slots_per_arena, shape.slot_stride)
        self._shape = shape
        if slots_per_arena < 1 or len(arenas) * slots_per_arena < shape.num_slots:
            text = f"{len(arenas)} arenas of {slots_per_arena} slots do not hold {shape.num_slots}"
            raise PeerError(text)
        known = before.mapped if before is not None and before.cut == self.cut else {}
        names = [(one.get("device"), one.get("inode"), one.get("bytes")) for one in arenas]
        self.mapped: Final[dict[_Name, Arena]] = {
            name: known.get(name) or Arena(handle)
            for name, handle in zip(names, arenas, strict=True)
        }
        self._arenas = [self.mapped[name] for name in names]
        if min(arena.num_bytes for arena in self._arenas) < slots_per_arena * shape.slot_stride:
            text = f"an arena is smaller than its {slots_per_arena} slots of {shape.slot_stride}"
            raise PeerError(text)
        # Pieces begin on a page; on some machines that has 64 KiB.
        unit = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, shape.slot_stride)
        self._slots_per_piece = unit * max(1, PIECE_BYTES // (unit * shape.slot_stride))

    @property
    def arenas(self) -> list[tuple[int, int]]:
        """Address and bytes of each arena."""
        return [(arena.address, arena.num_bytes) for arena in self._arenas]

    def address(self, slot: int) -> int:
        """Return where ``slot`` begins.

        Raises:
            PeerError: There is no such slot.
        """
        arena, place = self._place(slot)
        return arena.address + place * self._shape.slot_stride

    def is_pinned(self, slots: Iterable[int]) -> bool:
        """Return whether all of these slots lie in pinned memory.

        Raises:
            PeerError: One of them does not exist.
        """
        return all(arena.is_pinned(offset) for arena, offset, _ in self._pieces(slots))

    def pin(self, slots: Iterable[int], pinner: Pinner) -> int:
        """Pin what these slots lie in, by ``pinner``; returns how many bytes were not before.

        Raises:
            PeerError: A slot does not exist, or the device refuses a piece; the others are pinned.
        """
        pinned, refusal = 0, None
        for arena, offset, num_bytes in sorted(self._pieces(slots), key=lambda piece: piece[1:]):
            try:
                pinned += arena.pin(offset, num_bytes, pinner)
            except PeerError as error:
                refusal = error
        if refusal is not None:
            raise refusal
        return pinned

    def _place(self, slot: int) -> tuple[Arena, int]:
        if not 0 <= slot < self._shape.num_slots:
            text = f"slot {slot} is not one of {self._shape.num_slots}; the prompt is computed here"
            raise PeerError(text)
        arena, place = divmod(slot, self.cut[0])
        return self._arenas[arena], place

    def _pieces(self, slots: Iterable[int]) -> Iterator[tuple[Arena, int, int]]:
        """Yield arena, offset and bytes of what is pinned at a time; no slot lies in two."""
        slots_per_arena, stride = self.cut
        found = set()
        for slot in slots:
            arena, place = self._place(slot)
            first = place - place % self._slots_per_piece
            num_slots = min(self._slots_per_piece, slots_per_arena - first)
            found.add((arena, first * stride, num_slots * stride))
        yield from found

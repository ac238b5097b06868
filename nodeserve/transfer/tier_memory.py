"""The host tier's memory as one engine's process has it mapped: arenas to write, a page to read."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import Final

from nodeserve.errors import PeerError
from nodeserve.transfer.base import Handle
from nodeserve.transfer.shared_memory import open_memory
from nodeserve.transfer.slot_directory import SlotDirectoryReader, SlotShape


class TierMemory:
    """All arenas and the slot directory. Mapped whole at once, which touches no page.

    Nobody closes it: copies that still run hold it, and it goes with the last of them.
    """

    def __init__(
        self,
        shape: SlotShape,
        slots_per_arena: int,
        arenas: Sequence[Handle],
        directory: Handle,
    ) -> None:
        """Map what the block manager has described.

        Raises:
            PeerError: Its owner is gone, or the arenas do not hold as many slots.
        """
        self.directory: Final = SlotDirectoryReader(directory, shape)
        self._shape = shape
        self._slots_per_arena = slots_per_arena
        if slots_per_arena < 1 or len(arenas) * slots_per_arena < shape.num_slots:
            text = f"{len(arenas)} arenas of {slots_per_arena} slots do not hold {shape.num_slots}"
            raise PeerError(text)
        self._maps = [_mapped(handle) for handle in arenas]
        if min(map(len, self._maps)) < slots_per_arena * shape.slot_stride:
            text = f"an arena is smaller than its {slots_per_arena} slots of {shape.slot_stride}"
            raise PeerError(text)
        self._views = [ctypes.c_char.from_buffer(one) for one in self._maps]
        self._addresses = [ctypes.addressof(view) for view in self._views]

    @property
    def arenas(self) -> list[tuple[int, int]]:
        """Address and bytes of each arena."""
        sizes = (len(one) for one in self._maps)
        return list(zip(self._addresses, sizes, strict=True))

    def address(self, slot: int) -> int:
        """Return where ``slot`` begins.

        Raises:
            PeerError: There is no such slot.
        """
        if not 0 <= slot < self._shape.num_slots:
            text = f"slot {slot} is not one of {self._shape.num_slots}; the prompt is computed here"
            raise PeerError(text)
        arena, place = divmod(slot, self._slots_per_arena)
        return self._addresses[arena] + place * self._shape.slot_stride


def _mapped(handle: Handle) -> mmap.mmap:
    opened = open_memory(handle, os.O_RDWR)
    try:
        return mmap.mmap(opened, 0)
    except (OSError, ValueError) as error:
        text = f"cannot map an arena of {handle.get('bytes')} bytes: {error}"
        raise PeerError(text) from error
    finally:
        os.close(opened)

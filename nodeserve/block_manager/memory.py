"""The host tier's memory as this process was given it, cut into slots."""

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import NamedTuple

from nodeserve.errors import CapacityError, ConfigError
from nodeserve.transfer.base import Handle
from nodeserve.transfer.first_touch import touch
from nodeserve.transfer.shared_memory import handle_of
from nodeserve.transfer.slot_directory import SlotShape, directory_bytes

_PAGE_BYTES = 4096


class TierShape(NamedTuple):
    """How the arenas are cut: slot ``s`` begins at ``s % slots_per_arena * slot_stride``."""

    num_slots: int
    slots_per_arena: int
    slot_stride: int
    block_bytes: int


class TierMemory:
    """The slot directory's file and the arenas'."""

    def __init__(self, fds: list[int], arena_bytes: int) -> None:
        """Use ``fds``: the directory's, then those of arenas of ``arena_bytes`` each.

        Raises:
            ConfigError: They are not that.
        """
        if len(fds) < 2:
            text = (
                f"block manager: {len(fds)} files for the host tier, a directory and arenas needed"
            )
            raise ConfigError(text)
        self.directory_fd, *self.arena_fds = fds
        sizes = {os.fstat(fd).st_size for fd in self.arena_fds}
        if sizes != {arena_bytes}:
            text = f"block manager: arenas have {sorted(sizes)} bytes, told were {arena_bytes}"
            raise ConfigError(text)
        self.arena_bytes = arena_bytes
        self._addresses: list[int] = []

    @property
    def num_bytes(self) -> int:
        """The size of all arenas together."""
        return self.arena_bytes * len(self.arena_fds)

    def touch(self, goes_on: Callable[[], bool]) -> bool:
        """Take the pages of all arenas; see ``first_touch.touch``."""
        return all(touch(fd, self.arena_bytes, goes_on=goes_on) for fd in self.arena_fds)

    def shape(self, block_bytes: int) -> TierShape:
        """Return how these arenas hold blocks of ``block_bytes``.

        Raises:
            CapacityError: They hold none.
        """
        stride = -(-block_bytes // _PAGE_BYTES) * _PAGE_BYTES
        slots_per_arena = self.arena_bytes // stride
        if not slots_per_arena:
            text = (
                f"a block has {block_bytes} bytes and an arena of the host tier "
                f"{self.arena_bytes}; raise kv.host.size or lower the block size"
            )
            raise CapacityError(text)
        num_slots = slots_per_arena * len(self.arena_fds)
        room = os.fstat(self.directory_fd).st_size
        if room < directory_bytes(num_slots):
            text = f"the slot directory has {room} bytes, {directory_bytes(num_slots)} are needed"
            raise CapacityError(text)
        return TierShape(num_slots, slots_per_arena, stride, block_bytes)

    def handles(self) -> tuple[tuple[Handle, ...], Handle]:
        """Return the arenas' handles and the directory's, for peers while this process lives."""
        return tuple(handle_of(fd) for fd in self.arena_fds), handle_of(self.directory_fd)

    def address(self, slot: int, shape: TierShape) -> int:
        """Return where a slot lies in this process; the first call maps the arenas."""
        if not self._addresses:
            self._addresses = [self._map(fd) for fd in self.arena_fds]
        arena, place = divmod(slot, shape.slots_per_arena)
        return self._addresses[arena] + place * shape.slot_stride

    def _map(self, fd: int) -> int:
        mapped = mmap.mmap(fd, self.arena_bytes)
        # Never unmapped: threads of a disk that hangs may still copy while the process ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(mapped))
        return ctypes.addressof(ctypes.c_char.from_buffer(mapped))


def directory_shape(shape: TierShape, namespace: bytes) -> SlotShape:
    """Return what the slot directory's header says of a tier of this shape."""
    return SlotShape(shape.num_slots, shape.slot_stride, namespace)

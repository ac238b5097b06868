"""The page on which an engine shows its peers which leases hold.

Layout, 64-bit words of this machine: magic, generation, number of slots, one unused, then one word
per slot: the lease's id while it holds, 0 once it ended. The owner clears a slot before it lets
the blocks go; a reader looks before and after its copy.
"""

import ctypes
import mmap
from typing import Final

from nodeserve.errors import PeerError
from nodeserve.ids import Generation, LeaseId
from nodeserve.transfer.base import Handle
from nodeserve.transfer.shared_memory import MappedMemory, SharedMemory

_MAGIC: Final = int.from_bytes(b"NSLEASE1", "little")
_HEADER_WORDS: Final = 4
_WORD_BYTES: Final = 8


class LeaseTable:
    """The owner's side: written by the engine's scheduler only."""

    def __init__(self, generation: Generation, num_slots: int) -> None:
        """Create the table with every slot clear."""
        num_words = _HEADER_WORDS + num_slots
        self._memory = SharedMemory("nodeserve-leases", num_words * _WORD_BYTES)
        mapped = mmap.mmap(self._memory.fd, self._memory.num_bytes)
        # An element's assignment is one aligned store: no reader sees half of a lease id.
        self._words = (ctypes.c_uint64 * num_words).from_buffer(mapped)
        self._words[:_HEADER_WORDS] = [_MAGIC, int(generation), num_slots, 0]

    def handle(self) -> Handle:
        """Return what a peer needs to read this table."""
        return self._memory.handle()

    def publish(self, slot: int, lease_id: LeaseId) -> None:
        """Show that ``lease_id`` holds."""
        self._words[_HEADER_WORDS + slot] = lease_id

    def clear(self, slot: int) -> None:
        """Show that the slot's lease has ended."""
        self._words[_HEADER_WORDS + slot] = 0

    def close(self) -> None:
        """Close the file; readers that have it mapped keep seeing the table."""
        self._memory.close()


class LeaseTableReader:
    """A peer's lease table, mapped read-only."""

    def __init__(self, handle: Handle, generation: Generation) -> None:
        """Map the table and check that it is of ``generation``.

        Raises:
            PeerError: The owner is gone, or this is not that generation's table.
        """
        self._memory = MappedMemory(handle)
        self._generation = generation
        try:
            self._num_slots = self._checked_num_slots()
        except PeerError:
            self.close()
            raise

    def require(self, slot: int, lease_id: LeaseId) -> None:
        """Return if the lease holds now.

        Raises:
            PeerError: It has ended: what was copied since the last look may be anybody's.
        """
        self._require_generation()
        if not 0 <= slot < self._num_slots:
            text = f"lease {lease_id} names slot {slot}, the table has {self._num_slots}"
            raise PeerError(text)
        if (found := self._word(_HEADER_WORDS + slot)) != lease_id:
            text = (
                f"lease {lease_id} of worker generation {self._generation} has ended "
                f"(its slot holds {found}); recompute the prompt"
            )
            raise PeerError(text)

    def is_current(self) -> bool:
        """Return whether the owner still has the table."""
        return self._memory.is_current()

    def close(self) -> None:
        """Unmap the table."""
        self._memory.close()

    def _word(self, index: int) -> int:
        address = self._memory.address + index * _WORD_BYTES
        return ctypes.c_uint64.from_address(address).value

    def _checked_num_slots(self) -> int:
        num_words = self._memory.num_bytes // _WORD_BYTES
        num_slots = self._word(2) if num_words > _HEADER_WORDS else 0
        if _HEADER_WORDS + num_slots != num_words or num_slots == 0:
            text = (
                f"lease table of worker generation {self._generation} has {num_words} words "
                f"for {num_slots} slots; restart that worker"
            )
            raise PeerError(text)
        self._require_generation()
        return num_slots

    def _require_generation(self) -> None:
        found = (self._word(0), self._word(1))
        if found != (_MAGIC, self._generation):
            text = f"lease table is of magic and generation {found}, not of {self._generation}"
            raise PeerError(text)

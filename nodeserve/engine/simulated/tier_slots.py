"""The host tier's memory as a simulated engine writes and reads it."""

import ctypes
from typing import Final

from nodeserve.engine.tier_client import TierClient
from nodeserve.errors import PeerError
from nodeserve.transfer.slot_directory import SlotShape
from nodeserve.transfer.tier_memory import TierMemory
from nodeserve.wire.kv_tier import KEY_BYTES, KvWelcome

_REPEATS: Final = 8
"""How often a key stands at each end of its slot."""


class TierSlots:
    """Maps the tier that the client was welcomed to, and maps it anew for its successor."""

    def __init__(self, client: TierClient) -> None:
        self._client = client
        self._welcome: KvWelcome | None = None
        self._memory: TierMemory | None = None

    def write(self, slot: int, key: bytes) -> None:
        """Write the block of ``key``.

        Raises:
            PeerError: The tier is gone, or has no such slot.
        """
        memory, end = self._mapped(), self._end()
        address = memory.address(slot)
        payload = key * _REPEATS
        ctypes.memmove(address, payload, len(payload))
        ctypes.memmove(address + end, payload, len(payload))

    def holds(self, slot: int, key: bytes) -> bool:
        """Tell whether a slot holds the bytes of ``key``, and held them all the while.

        Raises:
            PeerError: The tier is gone, or the directory says that the slot holds another block.
        """
        memory, end = self._mapped(), self._end()
        before = memory.directory.require(slot, key)
        address, size = memory.address(slot), KEY_BYTES * _REPEATS
        found = ctypes.string_at(address, size) + ctypes.string_at(address + end, size)
        after = memory.directory.require(slot, key)
        if after.sequence != before.sequence:
            text = f"slot {slot} was given to another block meanwhile; the prompt is computed here"
            raise PeerError(text)
        return found == key * _REPEATS * 2

    def _end(self) -> int:
        """Return where in a slot the second copy begins; not beyond the first in a tiny one."""
        stride = 0 if self._welcome is None else self._welcome.slot_stride
        return max(0, stride - KEY_BYTES * _REPEATS)

    def _mapped(self) -> TierMemory:
        welcome = self._client.welcome
        if welcome is None:
            text = "the host tier is gone; the prompt is computed here"
            raise PeerError(text)
        if self._memory is None or welcome is not self._welcome:
            shape = SlotShape(welcome.num_slots, welcome.slot_stride, welcome.namespace)
            self._memory = TierMemory(
                shape, welcome.slots_per_arena, welcome.arenas, welcome.directory
            )
            self._welcome = welcome
        return self._memory

"""Prefixes that the operator keeps in the host tier."""

from collections.abc import Iterable
from typing import Final

from nodeserve.errors import CapacityError, InvariantError, RequestError
from nodeserve.kv.room import Room
from nodeserve.kv.slot_table import SlotPhase, SlotTable

MAX_PREFIXES: Final = 1000


class PinnedPrefixes:
    """Holds on the slots of whole prefixes; blocks that prefixes share are held once for each."""

    def __init__(self, table: SlotTable, room: Room, max_slots: int) -> None:
        """Hold at most ``max_slots`` slots in all."""
        self._table = table
        self._room = room
        self._max_slots = max_slots
        self._chains: dict[bytes, list[int]] = {}
        self.held: dict[int, int] = {}

    @property
    def keys(self) -> list[bytes]:
        """The key of each pinned prefix."""
        return list(self._chains)

    def __contains__(self, key: bytes) -> bool:
        """Return whether the prefix that ends with this block is pinned."""
        return key in self._chains

    def pin(self, digits: str) -> list[int]:
        """Keep the prefix whose last block's key begins with ``digits``; return its slots.

        Raises:
            RequestError: No block of the host tier begins so, or several do.
            CapacityError: That would pin more than may be pinned.
        """
        key = self._resolve(digits, list(self._table.ready))
        if key in self._chains:
            return self._chains[key]
        chain = self._chain(key)
        if not self._fits(chain):
            total = len(self.held.keys() | set(chain))
            text = (
                f"prefix {digits}: {total} blocks in {len(self._chains) + 1} prefixes would be "
                f"pinned, at most {self._max_slots} in {MAX_PREFIXES} may be; unpin another one"
            )
            raise CapacityError(text)
        self._hold(key, chain)
        return chain

    def restore(self, keys: Iterable[bytes]) -> None:
        """Keep the prefixes that were pinned before, as far as they are there and allowed."""
        for key in keys:
            if key in self._table.ready and key not in self._chains:
                chain = self._chain(key)
                if self._fits(chain):
                    self._hold(key, chain)

    def unpin(self, digits: str) -> list[int]:
        """Let a pinned prefix go and return its slots.

        Raises:
            RequestError: No pinned prefix's key begins so, or several do.
        """
        chain = self._chains.pop(self._resolve(digits, list(self._chains)))
        for slot in chain:
            self.held[slot] -= 1
            if not self.held[slot]:
                del self.held[slot]
            self._table.holds[slot] -= 1
        for slot in chain:
            self._room.offer(slot)
        return chain

    def unpin_all(self) -> int:
        """Let every pinned prefix go and return how many there were."""
        keys = list(self._chains)
        for key in keys:
            self.unpin(key.hex())
        return len(keys)

    def check(self) -> None:
        """Raise InvariantError unless what is held is what the prefixes hold."""
        counted: dict[int, int] = {}
        for chain in self._chains.values():
            for slot in chain:
                counted[slot] = counted.get(slot, 0) + 1
        if counted != self.held or len(counted) > self._max_slots:
            text = f"{len(self.held)} slots are held, prefixes hold {len(counted)}; report this bug"
            raise InvariantError(text)

    def _chain(self, key: bytes) -> list[int]:
        table = self._table
        chain = table.chain_to(table.ready[key])
        return [slot for slot in chain if table.phases[slot] is SlotPhase.READY]

    def _fits(self, chain: list[int]) -> bool:
        total = len(self.held.keys() | set(chain))
        return total <= self._max_slots and len(self._chains) < MAX_PREFIXES

    def _hold(self, key: bytes, chain: list[int]) -> None:
        self._chains[key] = chain
        for slot in chain:
            self.held[slot] = self.held.get(slot, 0) + 1
            self._table.holds[slot] += 1

    @staticmethod
    def _resolve(digits: str, keys: list[bytes]) -> bytes:
        digits = digits.lower()
        try:
            head = bytes.fromhex(digits[: len(digits) // 2 * 2])
        except ValueError as error:
            text = f"prefix {digits!r} is not hexadecimal: {error}; see `nodeserve kv`"
            raise RequestError(text) from error
        found = [key for key in keys if key.startswith(head) and key.hex().startswith(digits)]
        if len(found) == 1:
            return found[0]
        text = f"{len(found)} of {len(keys)} blocks have a key that begins with {digits!r}"
        advice = "give more digits" if found else "see `nodeserve kv`"
        raise RequestError(f"{text}; {advice}")

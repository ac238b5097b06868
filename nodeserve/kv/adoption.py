"""Slots that a predecessor left, taken over some at a time and linked to each other again.

The directory names the block before each by the first bytes of its key, so that links are found
whatever the order in which slots come, and none to a block that is no more.
"""

from collections.abc import Mapping
from typing import Final

from nodeserve.kv.room import Room
from nodeserve.kv.slot_table import FoundSlot, SlotPhase, SlotTable
from nodeserve.kv.tier_events import Command, ShowSlot

PARENT_BYTES: Final = 8
"""How much of the key before a block the directory has room for; keys are digests."""


class Adoption:
    """Fills a tier that is still empty; what it needs for that goes with it."""

    def __init__(self, table: SlotTable, room: Room) -> None:
        self._table = table
        self._room = room
        self._ready: dict[bytes, int] = {}
        self._quarantined: dict[bytes, int] = {}
        self._orphans: dict[bytes, list[int]] = {}

    def take(self, slots: Mapping[int, FoundSlot]) -> list[Command]:
        """Take over some slots; return what else is to be shown of them than before."""
        table, phases = self._table, self._table.phases
        self._room.adopt(slots)
        for slot, found in slots.items():
            phase, head = phases[slot], found.key[:PARENT_BYTES]
            if phase is SlotPhase.FREE:
                continue
            if found.parent:
                self._link(slot, found.parent[:PARENT_BYTES])
            if phase is SlotPhase.READY:
                self._ready[head] = slot
                for child in self._orphans.pop(head, ()):
                    table.link(child, slot)
            else:
                self._quarantined[head] = slot
        return [
            # Its parent may still be to come, and is not to be forgotten until then.
            ShowSlot(slot, phases[slot], table.keys[slot], table.tenants[slot], found.parent)
            if phases[slot] is not SlotPhase.FREE
            else ShowSlot(slot, SlotPhase.FREE, b"", 0)
            for slot, found in slots.items()
            if found.phase is not phases[slot]
        ]

    def end(self) -> None:
        """Link what follows blocks that their writers may still claim; all slots were taken."""
        for head, children in self._orphans.items():
            parent = self._quarantined.get(head)
            if parent is not None:
                for child in children:
                    self._table.link(child, parent)
        self._room.end_adoption()

    def _link(self, slot: int, parent_head: bytes) -> None:
        parent = self._ready.get(parent_head)
        if parent is None:
            self._orphans.setdefault(parent_head, []).append(slot)
        else:
            self._table.link(slot, parent)

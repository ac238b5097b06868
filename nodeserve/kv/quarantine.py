"""Slots that nobody may use yet, because a dead writer's device may still write into them.

Also a new block manager's patience: until every engine that its predecessor knew has said what it
reads and writes, or some time has passed, nothing is evicted and no quarantine ends.
"""

from collections.abc import Iterable
from typing import Final

from nodeserve.errors import InvariantError
from nodeserve.kv.room import Room
from nodeserve.kv.slot_table import SlotPhase, SlotTable
from nodeserve.kv.tier_events import Command, ShowSlot, WakeAt

_NOT_YET: Final = float("inf")


class Quarantine:
    """When each QUARANTINED slot becomes FREE; true while there is one."""

    def __init__(self, table: SlotTable, room: Room, quarantine_s: float) -> None:
        self._table = table
        self._room = room
        self._quarantine_s = quarantine_s
        self._ends_s: dict[int, float] = {}
        self._adopt_until_s = _NOT_YET
        self._awaited: set[int] | None = None

    def __bool__(self) -> bool:
        return bool(self._ends_s)

    def adopt(
        self, generations: frozenset[int] | None, grace_s: float, now_s: float
    ) -> list[Command]:
        """Wait for these engines, or where they are not known for the whole ``grace_s``."""
        quarantined = enumerate(self._table.phases)
        self._ends_s = {s: _NOT_YET for s, phase in quarantined if phase is SlotPhase.QUARANTINED}
        self._awaited = None if generations is None else set(generations)
        self._room.may_evict = False
        self._adopt_until_s = now_s + grace_s
        return self._look_again(now_s) or [WakeAt(self._adopt_until_s)]

    def heard_of(self, generation: int, now_s: float) -> list[Command]:
        """Take note that an engine has said what it holds, or is dead."""
        if self._awaited is not None:
            self._awaited.discard(generation)
        return self._look_again(now_s)

    def add(self, slots: Iterable[int], now_s: float) -> list[Command]:
        """Keep slots whose writer is dead from use."""
        ends_s = now_s + self._quarantine_s
        added = dict.fromkeys(slots, ends_s)
        self._ends_s |= added
        return [WakeAt(ends_s)] if added else []

    def may_claim(self, slot: int, key: bytes) -> bool:
        """Return whether the engine that was writing ``key`` into a slot may go on."""
        table = self._table
        return (
            slot in self._ends_s
            and table.keys[slot] == key
            and key not in table.ready
            and key not in table.written
        )

    def claimed(self, slot: int) -> None:
        """Take note that a slot's writer lives."""
        del self._ends_s[slot]

    def expire(self, now_s: float) -> list[Command]:
        """Free what has been kept long enough."""
        commands = self._look_again(now_s)
        due = [slot for slot, ends_s in self._ends_s.items() if ends_s <= now_s]
        for slot in due:
            del self._ends_s[slot]
            tenant = self._table.tenants[slot]
            self._room.freed(slot, tenant, self._table.end_quarantine(slot))
            commands.append(ShowSlot(slot, SlotPhase.FREE, b"", 0))
        return commands

    def check(self) -> None:
        """Raise InvariantError unless exactly the QUARANTINED slots are waited for."""
        phases = self._table.phases
        slots = {slot for slot, phase in enumerate(phases) if phase is SlotPhase.QUARANTINED}
        if slots != self._ends_s.keys():
            text = f"slots {sorted(slots)} are QUARANTINED, {sorted(self._ends_s)} are waited for"
            raise InvariantError(text)

    def _look_again(self, now_s: float) -> list[Command]:
        """End the adoption when everybody was heard of, or it is time."""
        if self._room.may_evict or (self._awaited != set() and now_s < self._adopt_until_s):
            return []
        self._room.may_evict = True
        return self.add(list(self._ends_s), now_s)

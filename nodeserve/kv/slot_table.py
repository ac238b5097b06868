"""The slots of the host tier: what each holds, who writes or reads it, and what follows it.

A slot is FREE, then RESERVED by one writer, then READY for everybody, then evicted and FREE. One
whose writer died is QUARANTINED first, since copies of a device may trail its process. Facts of
a slot lie in lists by its number, because a look-up touches thousands of them.
"""

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple

from nodeserve.errors import InvalidTransitionError, InvariantError

NO_SLOT: Final = -1
NOBODY: Final = -1
DISK: Final = 0
"""The writer of a slot that is being read from disk; engines' generations count from 1."""


class SlotPhase(enum.IntEnum):
    """Where a slot is in its life; the numbers are those of ``transfer.slot_directory``."""

    FREE = 0
    RESERVED = 1
    READY = 2
    QUARANTINED = 3


class SlotEvent(enum.StrEnum):
    """What can happen to a slot."""

    RESERVED = "reserved"
    PUBLISHED = "published"
    ABANDONED = "abandoned"
    EVICTED = "evicted"
    WRITER_LOST = "writer lost"
    QUARANTINE_OVER = "quarantine over"
    CLAIMED = "claimed"


TRANSITIONS: Final[Mapping[tuple[SlotPhase, SlotEvent], SlotPhase]] = {
    (SlotPhase.FREE, SlotEvent.RESERVED): SlotPhase.RESERVED,
    (SlotPhase.RESERVED, SlotEvent.PUBLISHED): SlotPhase.READY,
    (SlotPhase.RESERVED, SlotEvent.ABANDONED): SlotPhase.FREE,
    (SlotPhase.RESERVED, SlotEvent.WRITER_LOST): SlotPhase.QUARANTINED,
    (SlotPhase.READY, SlotEvent.EVICTED): SlotPhase.FREE,
    (SlotPhase.QUARANTINED, SlotEvent.QUARANTINE_OVER): SlotPhase.FREE,
    (SlotPhase.QUARANTINED, SlotEvent.CLAIMED): SlotPhase.RESERVED,
}


class FoundSlot(NamedTuple):
    """What a predecessor's directory says of one slot.

    ``parent`` is how the key of the block before begins, as far as the directory has it; b"" for
    none.
    """

    phase: SlotPhase
    key: bytes
    tenant: int
    parent: bytes = b""


class SlotTable:
    """Every slot's phase and facts, and the index from key to slot.

    Attributes:
        ready: Key to slot, of what anybody may read.
        written: Key to slot, of what is being written by an engine or read from disk.
        phases: Each slot's phase.
        keys: Each slot's key; b"" where it holds none.
        tenants: Whom the slot is booked on; 0 where it holds no key.
        writers: The generation that may write a RESERVED slot, or DISK; NOBODY otherwise.
        pins: How many look-ups hold the slot.
        children: How many blocks that follow this one are READY or RESERVED, or were RESERVED
            when a predecessor ended.
        holds: How many pinned prefixes hold the slot, and disk while it reads from it.
        epochs: Raised whenever a slot becomes FREE, so that what spoke of it before is found out.
    """

    def __init__(self, num_slots: int) -> None:
        """Begin with ``num_slots`` slots, all FREE."""
        self.num_slots = num_slots
        self.ready: dict[bytes, int] = {}
        self.written: dict[bytes, int] = {}
        self.phases = [SlotPhase.FREE] * num_slots
        self.keys = [b""] * num_slots
        self.tenants = [0] * num_slots
        self.writers = [NOBODY] * num_slots
        self.pins = [0] * num_slots
        self.children = [0] * num_slots
        self.holds = [0] * num_slots
        self.epochs = [0] * num_slots
        self._parents = [NO_SLOT] * num_slots
        self._parent_epochs = [0] * num_slots

    def adopt(self, slot: int, found: FoundSlot) -> None:
        """Take over what a predecessor left in a slot that is still FREE here.

        What was READY is so again, unless another slot has its key. What was RESERVED or
        QUARANTINED is QUARANTINED under its key, for its writer to claim.
        """
        if found.phase is SlotPhase.FREE or not found.key:
            return
        if found.phase is not SlotPhase.READY:
            self.phases[slot], self.keys[slot] = SlotPhase.QUARANTINED, found.key
            self.tenants[slot] = found.tenant
        elif found.key not in self.ready:
            self.phases[slot], self.keys[slot] = SlotPhase.READY, found.key
            self.tenants[slot] = found.tenant
            self.ready[found.key] = slot

    def reserve(self, slot: int, key: bytes, *, tenant: int, writer: int, parent: int) -> None:
        """Give a FREE slot to ``writer`` for ``key``, which follows the block in ``parent``."""
        self._move(slot, SlotEvent.RESERVED)
        self.keys[slot], self.tenants[slot], self.writers[slot] = key, tenant, writer
        self.written[key] = slot
        if parent != NO_SLOT:
            self.link(slot, parent)

    def link(self, slot: int, parent: int) -> None:
        """Say that the block in ``slot``, which has no parent yet, follows that in ``parent``."""
        self._parents[slot] = parent
        self._parent_epochs[slot] = self.epochs[parent]
        self.children[parent] += 1

    def claim(self, slot: int, key: bytes, *, writer: int) -> None:
        """Let the engine that was writing a QUARANTINED slot go on with it."""
        self._move(slot, SlotEvent.CLAIMED)
        self.keys[slot], self.writers[slot] = key, writer
        self.written[key] = slot

    def publish(self, slot: int) -> None:
        """Let everybody read a RESERVED slot."""
        self._move(slot, SlotEvent.PUBLISHED)
        key = self.keys[slot]
        self.writers[slot] = NOBODY
        del self.written[key]
        self.ready[key] = slot

    def abandon(self, slot: int) -> int:
        """Free a RESERVED slot whose writer is done with it; returns as ``evict`` does."""
        self._move(slot, SlotEvent.ABANDONED)
        del self.written[self.keys[slot]]
        return self._freed(slot)

    def evict(self, slot: int) -> int:
        """Free a READY slot and return the slot of the block before it, or NO_SLOT.

        Raises:
            InvariantError: It is in use, or a block that follows it is present.
        """
        if self.phases[slot] is SlotPhase.READY and not self.is_evictable(slot):
            text = (
                f"slot {slot} is evicted with {self.pins[slot]} pins, {self.children[slot]} "
                f"children and {self.holds[slot]} holds; report this bug"
            )
            raise InvariantError(text)
        self._move(slot, SlotEvent.EVICTED)
        del self.ready[self.keys[slot]]
        return self._freed(slot)

    def lose_writer(self, slot: int) -> int:
        """Quarantine a RESERVED slot; returns the slot of the block before it, or NO_SLOT."""
        self._move(slot, SlotEvent.WRITER_LOST)
        del self.written[self.keys[slot]]
        self.writers[slot] = NOBODY
        return self._unlink(slot)

    def end_quarantine(self, slot: int) -> int:
        """Free a QUARANTINED slot; returns as ``evict`` does."""
        self._move(slot, SlotEvent.QUARANTINE_OVER)
        return self._freed(slot)

    def is_evictable(self, slot: int) -> bool:
        """Return whether a slot is READY and nobody and nothing needs it."""
        return (
            self.phases[slot] is SlotPhase.READY
            and not self.pins[slot]
            and not self.children[slot]
            and not self.holds[slot]
        )

    def parent_of(self, slot: int) -> int:
        """Return the slot of the block before, or NO_SLOT where it is gone or unknown."""
        parent = self._parents[slot]
        if parent != NO_SLOT and self.epochs[parent] == self._parent_epochs[slot]:
            return parent
        return NO_SLOT

    def parent_key(self, slot: int) -> bytes:
        """Return the key of the block before; b"" where it is gone or unknown."""
        parent = self.parent_of(slot)
        return b"" if parent == NO_SLOT else self.keys[parent]

    def chain_to(self, slot: int) -> list[int]:
        """Return the slots of the blocks up to this one, last first, as far as known."""
        chain = []
        while slot != NO_SLOT:
            chain.append(slot)
            slot = self.parent_of(slot)
        return chain

    def check(self) -> None:
        """Raise InvariantError unless index, phases and counts of children agree."""
        children = [0] * self.num_slots
        for slot, phase in enumerate(self.phases):
            key = self.keys[slot]
            self._require((self.ready.get(key) == slot) is (phase is SlotPhase.READY), slot)
            self._require((self.written.get(key) == slot) is (phase is SlotPhase.RESERVED), slot)
            self._require((self.writers[slot] != NOBODY) is (phase is SlotPhase.RESERVED), slot)
            self._require((key == b"") is (phase is SlotPhase.FREE), slot)
            self._require(min(self.pins[slot], self.holds[slot]) >= 0, slot)
            if phase is not SlotPhase.READY:
                self._require(not self.pins[slot] and not self.holds[slot], slot)
            if (parent := self.parent_of(slot)) != NO_SLOT:
                children[parent] += 1
        for slot, num_children in enumerate(children):
            self._require(self.children[slot] == num_children, slot)
        if not self.ready.keys().isdisjoint(self.written):
            text = "a key is both READY and RESERVED; report this bug"
            raise InvariantError(text)
        if len(self.ready) + len(self.written) > self.num_slots:
            text = f"{len(self.ready)} + {len(self.written)} keys in {self.num_slots} slots"
            raise InvariantError(text)

    def _move(self, slot: int, event: SlotEvent) -> None:
        phase = self.phases[slot]
        after = TRANSITIONS.get((phase, event))
        if after is None:
            text = f"slot {slot} is {phase.name} and cannot be {event}"
            raise InvalidTransitionError(text)
        self.phases[slot] = after

    def _freed(self, slot: int) -> int:
        parent = self._unlink(slot)
        self.keys[slot], self.tenants[slot], self.writers[slot] = b"", 0, NOBODY
        self.children[slot] = 0
        self.epochs[slot] += 1
        return parent

    def _unlink(self, slot: int) -> int:
        parent = self.parent_of(slot)
        self._parents[slot] = NO_SLOT
        if parent != NO_SLOT:
            self.children[parent] -= 1
        return parent

    def _require(self, holds: bool, slot: int) -> None:  # noqa: FBT001
        if not holds:
            text = (
                f"slot {slot}: {self.phases[slot].name}, key {self.keys[slot].hex()[:8]!r}, writer "
                f"{self.writers[slot]}, {self.pins[slot]} pins, {self.children[slot]} children, "
                f"{self.holds[slot]} holds do not go together; report this bug"
            )
            raise InvariantError(text)

"""What the host tier is told, and what it says is to be done.

Keys travel joined, ``KEY_BYTES`` bytes each, as on the wire.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nodeserve.kv.slot_table import SlotPhase, SlotTable

# ------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class EngineJoined:
    """An engine said hello, with the slots that it still reads, and writes under which keys."""

    generation: int
    worker: str
    reading: Sequence[int] = ()
    writing: Sequence[int] = ()
    writing_keys: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class EngineGone:
    """An engine's processes are confirmed dead."""

    generation: int


@dataclass(frozen=True, slots=True)
class BlocksLookedUp:
    """An engine asks for blocks of one request, in the order of its prompt."""

    generation: int
    call_id: int
    listener: str
    keys: bytes
    deadline_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DiskAsked:
    """These keys of a look-up, in its order, are on disk: the answer to AskDisk."""

    generation: int
    call_id: int
    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class CallsReleased:
    """An engine needs what these look-ups found no more."""

    generation: int
    call_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ReservationAsked:
    """An engine could store blocks of one request, which follow the block of ``parent``."""

    generation: int
    call_id: int
    listener: str
    keys: bytes
    parent: bytes = b""


@dataclass(frozen=True, slots=True)
class SlotsPublished:
    """An engine has written these slots."""

    generation: int
    slots: Sequence[int]


@dataclass(frozen=True, slots=True)
class SlotsAbandoned:
    """An engine will not write these slots."""

    generation: int
    slots: Sequence[int]


@dataclass(frozen=True, slots=True)
class ReadFromDiskEnded:
    """Disk has written a slot, or could not."""

    slot: int
    done: bool


@dataclass(frozen=True, slots=True)
class WriteToDiskEnded:
    """Disk needs a slot no more, whether it kept the block or not."""

    slot: int


@dataclass(frozen=True, slots=True)
class TimeElapsed:
    """Some time has passed."""


Event = (
    EngineJoined
    | EngineGone
    | BlocksLookedUp
    | DiskAsked
    | CallsReleased
    | ReservationAsked
    | SlotsPublished
    | SlotsAbandoned
    | ReadFromDiskEnded
    | WriteToDiskEnded
    | TimeElapsed
)

# ---------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class ShowSlot:
    """Say in the directory what a slot holds. Always before anybody is told of the slot.

    ``parent`` is the key of the block before; b"" where that is gone or unknown.
    """

    slot: int
    phase: SlotPhase
    key: bytes
    tenant: int
    parent: bytes = b""


@dataclass(frozen=True, slots=True)
class DropBlock:
    """Say in the directory that a slot is FREE: its block was evicted, to make room or as asked."""

    slot: int
    key: bytes
    tenant: int


@dataclass(frozen=True, slots=True)
class AnswerLookup:
    """Send a look-up's slots; another answer follows where ``num_pending`` is above 0."""

    generation: int
    call_id: int
    slots: bytes
    num_pending: int = 0


@dataclass(frozen=True, slots=True)
class AnswerReservation:
    """Send a reservation's slots."""

    generation: int
    call_id: int
    slots: bytes


@dataclass(frozen=True, slots=True)
class AskDisk:
    """Ask which of these keys are on disk, and answer with DiskAsked at once."""

    generation: int
    call_id: int
    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ReadFromDisk:
    """Have disk write a block into a slot; ends with ReadFromDiskEnded."""

    slot: int
    key: bytes


@dataclass(frozen=True, slots=True)
class WriteToDisk:
    """Have disk keep a slot's block; ends with WriteToDiskEnded."""

    slot: int
    key: bytes


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Hand in TimeElapsed at this time, or before."""

    at_s: float


Command = (
    ShowSlot
    | DropBlock
    | AnswerLookup
    | AnswerReservation
    | AskDisk
    | ReadFromDisk
    | WriteToDisk
    | WakeAt
)


def shown_slot(table: SlotTable, slot: int) -> ShowSlot:
    """Return the command that shows what a slot holds now."""
    phase, key, tenant = table.phases[slot], table.keys[slot], table.tenants[slot]
    return ShowSlot(slot, phase, key, tenant, table.parent_key(slot))

"""One segment of the log: what was put where in it, and who is busy with it."""

import enum
from collections.abc import Iterator
from typing import Final, NamedTuple

from nodeserve.kv.disk_checkpoint import ENTRY, SegmentIndex
from nodeserve.kv.disk_record import PAGE_BYTES

MAX_SEGMENT_BYTES: Final = (1 << 20) * PAGE_BYTES
"""What offsets of 20 bits reach."""

_MASK: Final = (1 << 20) - 1


class Phase(enum.StrEnum):
    """Where a segment is in its life."""

    READY = "ready"
    OPEN = "open"
    SEALED = "sealed"
    EVICTING = "evicting"
    """Its hot records are being moved; they can still be read here."""
    DOOMED = "doomed"
    """Nothing in it counts any more; its file is reused when nobody is busy with it."""
    CLEARED = "cleared"
    """As DOOMED, but its file is removed, so that a restart finds nothing."""


class Place(NamedTuple):
    """Where a record is: ``offset`` and ``num_bytes`` of the whole record, header included."""

    segment: int
    offset: int
    num_bytes: int

    def pack(self) -> int:
        """Return the place as one number: an index of a million blocks holds a million."""
        return (
            (self.segment << 40) | (self.offset // PAGE_BYTES << 20) | self.num_bytes // PAGE_BYTES
        )

    @staticmethod
    def unpack(packed: int) -> "Place":
        """Return the place that was packed."""
        offset, num_pages = packed >> 20 & _MASK, packed & _MASK
        return Place(packed >> 40, offset * PAGE_BYTES, num_pages * PAGE_BYTES)


class Segment:
    """A segment file and its records; ``head`` is where the next one goes."""

    def __init__(self, number: int, phase: Phase) -> None:
        self.number = number
        self.phase = phase
        self.head = 0
        self.num_readers = 0
        self.writing: set[int] = set()
        """Offsets of records that are being written."""
        self.entries = bytearray()
        """Packed records in the order in which they were stored."""
        self.num_reads: dict[int, int] = {}
        """How often the record at an offset was read, where it was."""

    @property
    def is_busy(self) -> bool:
        """Whether anybody reads from it or writes to it."""
        return bool(self.num_readers or self.writing)

    def add(self, key: bytes, place: Place) -> None:
        """Note a record."""
        pages = (place.offset // PAGE_BYTES, place.num_bytes // PAGE_BYTES)
        self.entries += ENTRY.pack(key, *pages)

    def records(self) -> Iterator[tuple[bytes, Place]]:
        """Yield every record that was ever stored here, in order."""
        for key, offset, num_pages in ENTRY.iter_unpack(self.entries):
            yield key, Place(self.number, offset * PAGE_BYTES, num_pages * PAGE_BYTES)

    def index(self) -> SegmentIndex:
        """Return its records for a checkpoint, known up to the first one still being written."""
        known_bytes = min(self.writing, default=self.head)
        return SegmentIndex(self.number, known_bytes, bytes(self.entries))

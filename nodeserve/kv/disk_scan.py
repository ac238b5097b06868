"""What a segment's file holds, found out from its headers, one after the other.

The scan ends at the first page that is no header of this segment: nothing behind it is believed,
for where the next record would begin is not known. Payloads are not looked at; their checksums
are, when they are read.
"""

import enum
from typing import Final

from nodeserve.kv.disk_checkpoint import SegmentIndex
from nodeserve.kv.disk_record import HeaderFault, decode_header, record_bytes
from nodeserve.kv.disk_segment import Phase, Place, Segment


class ScanEnd(enum.StrEnum):
    """Why a scan ended."""

    CLEAN = "clean"
    """Here is the file's end, or nothing, or a record from before the file was used again."""
    TORN = "torn"
    TRUNCATED = "truncated"
    FOREIGN = "foreign"
    """A record of another namespace."""


class SegmentScan:
    """The scan of one file; ``segment`` is what it has found, ``end`` why it ended, if it has."""

    def __init__(
        self, number: int, file_bytes: int, namespace: bytes, known: SegmentIndex | None = None
    ) -> None:
        """Begin at the file's start, or behind what a checkpoint knew of it."""
        self.segment: Final = Segment(number, Phase.SEALED)
        self.end: ScanEnd | None = None
        self.last_sequence = 0
        self.num_known = 0
        self._file_bytes = file_bytes
        self._namespace = namespace
        if known is not None:
            self._take(known)
        self.end = self._end_of_file()

    @property
    def next_offset(self) -> int:
        """Where the next header would be."""
        return self.segment.head

    def feed(self, page: bytes | bytearray | memoryview) -> None:
        """Take the page at ``next_offset`` into account."""
        header = decode_header(page)
        if isinstance(header, HeaderFault):
            self.end = ScanEnd.CLEAN if header is HeaderFault.BLANK else ScanEnd.TORN
        elif header.segment != self.segment.number or header.sequence <= self.last_sequence:
            self.end = ScanEnd.CLEAN
        elif header.namespace != self._namespace:
            self.end = ScanEnd.FOREIGN
        elif self.next_offset + record_bytes(header.payload_bytes) > self._file_bytes:
            self.end = ScanEnd.TRUNCATED
        else:
            place = Place(self.segment.number, self.next_offset, record_bytes(header.payload_bytes))
            self.segment.add(header.key, place)
            self.segment.head += place.num_bytes
            self.last_sequence = header.sequence
            self.end = self._end_of_file()

    def _end_of_file(self) -> ScanEnd | None:
        return ScanEnd.CLEAN if self.next_offset + record_bytes(1) > self._file_bytes else None

    def _take(self, known: SegmentIndex) -> None:
        named = Segment(known.number, Phase.SEALED)
        named.entries += known.entries
        for key, place in named.records():
            end = place.offset + place.num_bytes
            # What lies behind a record that was being written is found again by its header.
            if end <= min(known.known_bytes, self._file_bytes):
                self.segment.add(key, place)
                self.segment.head = max(self.segment.head, end)
                self.num_known += 1
        if known.known_bytes <= self._file_bytes:
            self.segment.head = known.known_bytes

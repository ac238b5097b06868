"""Which block lies where in one directory, and which segment is written, kept, emptied or reused.

Records are only ever appended. When no file is left for the next segment, the oldest one is
evicted whole: records that were read since they were written are first moved to the open segment,
most read first, up to a budget; the others are gone (as in S3-FIFO; Yang et al., SOSP 2023). The
file is then used again under a new number, once nobody reads from it: numbers are never reused, so
a number and an offset mean one record for ever.

The caller does the I/O and tells of it. It keeps one job of ``next_job`` at a time in its hands.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from nodeserve.errors import InvariantError
from nodeserve.kv.disk_bound import LogShape
from nodeserve.kv.disk_checkpoint import Checkpoint
from nodeserve.kv.disk_record import record_bytes
from nodeserve.kv.disk_segment import Phase, Place, Segment

REINSERT_FRACTION: Final = 0.25
"""The part of a segment's bytes that may be moved out of an evicted one."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make the file of segment ``number``: out of that of ``reuses``, or a new one if None."""

    number: int
    reuses: int | None


@dataclass(frozen=True, slots=True)
class Evict:
    """Move these records out of segment ``number``: append each anew, as far as they fit."""

    number: int
    hot: tuple[tuple[bytes, Place], ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the file of segment ``number``."""

    number: int


Job = Prepare | Evict | Remove


class Reservation(NamedTuple):
    """Where a record is to be written, and its sequence number."""

    place: Place
    sequence: int


class DiskLog:
    """The index and the segments of one directory, under one namespace."""

    def __init__(self, shape: LogShape, *, reinsert_fraction: float = REINSERT_FRACTION) -> None:
        """Start with no segment at all; ``adopt`` those that are there before anything else."""
        self.shape = shape
        self._reinsert_bytes = int(shape.segment_bytes * reinsert_fraction)
        self._index: dict[bytes, int] = {}
        self._segments: dict[int, Segment] = {}
        self._ended: dict[int, Segment] = {}
        """Segments that are DOOMED or CLEARED, by number."""
        self._spare: list[int] = []
        """Numbers of files in which nothing counts, the next to be used last."""
        self._foreign: list[int] = []
        """Numbers of files that hold another namespace's records, the oldest last."""
        self._open: Segment | None = None
        self._ready: Segment | None = None
        self._next_number = 1
        self._next_sequence = 1
        self.num_evicted = 0

    # ------------------------------------------------------------------ looking

    @property
    def index(self) -> Mapping[bytes, int]:
        """Where each block is, as a packed ``Place``; any thread may look while another writes."""
        return self._index

    @property
    def num_files(self) -> int:
        """How many segment files there are."""
        return len(self._segments) + len(self._spare) + len(self._foreign)

    @property
    def is_settled(self) -> bool:
        """Whether the next segment is ready and no file waits to be reused or removed."""
        return self._ready is not None and not self._ended

    def checkpoint(self, namespace: bytes) -> Checkpoint:
        """Return what a successor should know."""
        kept = (Phase.OPEN, Phase.SEALED, Phase.EVICTING)
        indexes = tuple(s.index() for s in self._segments.values() if s.phase in kept)
        return Checkpoint(namespace, self._next_number, self._next_sequence, indexes)

    # ------------------------------------------------------------------ starting

    def adopt(self, segment: Segment) -> None:
        """Take over a predecessor's segment, in the order of numbers: later records count."""
        self._next_number = max(self._next_number, segment.number + 1)
        if not segment.entries:
            self._spare.insert(0, segment.number)
            return
        segment.phase = Phase.SEALED
        self._segments[segment.number] = segment
        self._index.update((key, place.pack()) for key, place in segment.records())

    def adopt_foreign(self, number: int) -> None:
        """Take over a segment of another namespace: its file is reused before one of ours."""
        self._next_number = max(self._next_number, number + 1)
        self._foreign.insert(0, number)

    def start_numbers_at(self, segment: int, sequence: int) -> None:
        """Use no number below these, where a predecessor's were higher."""
        self._next_number = max(self._next_number, segment)
        self._next_sequence = max(self._next_sequence, sequence)

    def surplus(self) -> list[int]:
        """Give up the files that are too many for the bound, and return their numbers."""
        numbers = []
        while self.num_files > self.shape.max_segments:
            if self._spare or self._foreign:
                numbers.append((self._spare or self._foreign).pop())
            else:
                victim = next(iter(self._segments.values()))
                self._drop_records(victim)
                numbers.append(victim.number)
                del self._segments[victim.number]
        return numbers

    # ------------------------------------------------------------------ records

    def reserve(self, payload_bytes: int) -> Reservation | None:
        """Take room for a record at the head; None until the next segment is ``prepared``."""
        num_bytes = record_bytes(payload_bytes)
        if num_bytes > self.shape.segment_bytes:
            text = f"a record of {num_bytes} bytes for segments of {self.shape.segment_bytes}"
            raise InvariantError(text)
        if not self.has_room(payload_bytes):
            if self._ready is None:
                return None
            self._seal()
        segment = self._open
        if segment is None:
            return None
        place = Place(segment.number, segment.head, num_bytes)
        segment.head += num_bytes
        segment.writing.add(place.offset)
        self._next_sequence += 1
        return Reservation(place, self._next_sequence - 1)

    def has_room(self, payload_bytes: int) -> bool:
        """Return whether a record fits into the open segment."""
        room = 0 if self._open is None else self.shape.segment_bytes - self._open.head
        return record_bytes(payload_bytes) <= room

    def commit(self, key: bytes, place: Place) -> bool:
        """The record at ``place`` is written. False where it was cleared meanwhile."""
        segment = self._segments[place.segment]
        segment.writing.remove(place.offset)
        if segment.phase is Phase.CLEARED:
            return False
        segment.add(key, place)
        self._index[key] = place.pack()
        return True

    def commit_moved(self, key: bytes, old: Place, place: Place) -> bool:
        """As ``commit``, of a record that was at ``old``; False also where it was forgotten."""
        if self.is_at(key, old):
            return self.commit(key, place)
        self.abandon(place)
        return False

    def abandon(self, place: Place) -> None:
        """The record at ``place`` will not be written, or not whole."""
        self._segments[place.segment].writing.remove(place.offset)

    def is_at(self, key: bytes, place: Place) -> bool:
        """Return whether the block is at this very place."""
        return self._index.get(key) == place.pack()

    def begin_read(self, key: bytes) -> Place | None:
        """Return where the block is and keep its file as it is until ``end_read``; None: gone."""
        packed = self._index.get(key)
        if packed is None:
            return None
        place = Place.unpack(packed)
        segment = self._segments[place.segment]
        segment.num_readers += 1
        segment.num_reads[place.offset] = segment.num_reads.get(place.offset, 0) + 1
        return place

    def end_read(self, place: Place) -> None:
        """Let go of the file."""
        self._segments[place.segment].num_readers -= 1

    def drop(self, key: bytes, place: Place) -> None:
        """The record at ``place`` turned out not to be whole."""
        if self.is_at(key, place):
            del self._index[key]

    def forget(self, keys: Iterable[bytes]) -> None:
        """Have these blocks no more."""
        for key in keys:
            self._index.pop(key, None)

    def clear(self) -> None:
        """Have no block any more, nor what is being written."""
        self._index.clear()
        for segment in self._segments.values():
            if segment.phase is not Phase.READY:
                self._end(segment, Phase.CLEARED)
        self._open = None
        # Also files that are only waiting to be used again still hold records by their names.
        for number in (*self._spare, *self._foreign):
            self._segments[number] = Segment(number, Phase.CLEARED)
            self._end(self._segments[number], Phase.CLEARED)
        self._spare.clear()
        self._foreign.clear()

    # ------------------------------------------------------------------ upkeep

    def next_job(self) -> Job | None:
        """Return what is to be done with the files now, if anything; ask again after each."""
        removal = self.next_removal()
        if removal is not None:
            return removal
        for number in [number for number, s in self._ended.items() if not s.is_busy]:
            del self._segments[number], self._ended[number]
            self._spare.append(number)
        if self._ready is not None:
            return None
        if self._spare:
            return self._prepare(self._spare.pop())
        if self.num_files < self.shape.max_segments:
            return self._prepare(None)
        if self._foreign:
            return self._prepare(self._foreign.pop())
        return self._evict_oldest()

    def next_removal(self) -> Remove | None:
        """Return the next file to remove, if any: that job alone is to be done before the end."""
        for number, segment in self._ended.items():
            if segment.phase is Phase.CLEARED and not segment.is_busy:
                return Remove(number)
        return None

    def prepared(self, number: int) -> None:
        """The file of segment ``number`` is there, and empty."""
        self._ready = self._segments[number]

    def evicted(self, number: int) -> None:
        """What was to be moved out of segment ``number`` has been, as far as it could."""
        segment = self._segments[number]
        self._drop_records(segment)
        if segment.phase is Phase.EVICTING:
            self._end(segment, Phase.DOOMED)

    def removed(self, number: int) -> None:
        """The file of segment ``number`` is gone."""
        del self._segments[number], self._ended[number]

    def check(self) -> None:
        """Raise InvariantError unless the files keep the bound and the index points into them."""
        if self.num_files > self.shape.max_segments:
            raise InvariantError(f"{self.num_files} files, bound to {self.shape.max_segments}")
        for key, packed in self._index.items():
            place = Place.unpack(packed)
            segment = self._segments.get(place.segment)
            if segment is None or place.offset + place.num_bytes > segment.head:
                raise InvariantError(f"block {key.hex()[:16]} is said to be at {place}")
            if segment.phase in {Phase.READY, Phase.DOOMED, Phase.CLEARED}:
                raise InvariantError(f"block {key.hex()[:16]} is in a {segment.phase} segment")

    def _end(self, segment: Segment, phase: Phase) -> None:
        segment.phase = phase
        self._ended[segment.number] = segment

    def _seal(self) -> None:
        if self._open is not None:
            self._open.phase = Phase.SEALED
        self._open, self._ready = self._ready, None
        if self._open is not None:
            self._open.phase = Phase.OPEN

    def _prepare(self, reuses: int | None) -> Prepare:
        number = self._next_number
        self._next_number += 1
        # Counted from here on: the file may be there already while the job is being done.
        self._segments[number] = Segment(number, Phase.READY)
        return Prepare(number, reuses)

    def _evict_oldest(self) -> Evict | None:
        if self._ended:  # its file comes first
            return None
        sealed = (s for s in self._segments.values() if s.phase is Phase.SEALED)
        victim = next((s for s in sealed if not s.writing), None)
        if victim is None:
            return None
        hot = tuple(self._worth_keeping(victim))
        kept = {key for key, _place in hot}
        for key, place in victim.records():
            if key not in kept:
                self._evict(key, place)
        victim.phase = Phase.EVICTING
        return Evict(victim.number, hot)

    def _worth_keeping(self, victim: Segment) -> Iterator[tuple[bytes, Place]]:
        live = [item for item in victim.records() if self.is_at(*item)]
        read = [item for item in live if item[1].offset in victim.num_reads]
        read.sort(key=lambda item: victim.num_reads[item[1].offset], reverse=True)
        budget = self._reinsert_bytes
        for key, place in read:
            if place.num_bytes <= budget:
                budget -= place.num_bytes
                yield key, place

    def _drop_records(self, segment: Segment) -> None:
        for key, place in segment.records():
            self._evict(key, place)

    def _evict(self, key: bytes, place: Place) -> None:
        if self.is_at(key, place):
            del self._index[key]
            self.num_evicted += 1

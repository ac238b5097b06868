"""A segment notes its records, and a place is one number and back."""

from hypothesis import given
from hypothesis import strategies as st

from nodeserve.kv.disk_checkpoint import ENTRY, SegmentIndex
from nodeserve.kv.disk_segment import Phase, Place, Segment

PAGES = st.integers(0, (1 << 20) - 1).map(lambda pages: pages * 4096)


@given(st.integers(0, 1 << 60), PAGES, PAGES)
def test_a_place_packed_and_unpacked_is_the_same(segment, offset, num_bytes) -> None:
    place = Place(segment, offset, num_bytes)
    assert Place.unpack(place.pack()) == place


def test_a_segment_is_known_up_to_the_first_record_still_being_written() -> None:
    segment = Segment(3, Phase.OPEN)
    segment.add(b"a" * 32, Place(3, 16384, 8192))
    segment.head = 24576
    entries = ENTRY.pack(b"a" * 32, 4, 2)
    assert segment.index() == SegmentIndex(3, 24576, entries)
    segment.writing |= {8192, 0}
    assert segment.index() == SegmentIndex(3, 0, entries)
    assert list(segment.records()) == [(b"a" * 32, Place(3, 16384, 8192))]


def test_a_segment_is_busy_while_anybody_reads_or_writes_it() -> None:
    segment = Segment(3, Phase.SEALED)
    assert not segment.is_busy
    segment.num_readers = 1
    assert segment.is_busy
    segment.num_readers, segment.writing = 0, {0}
    assert segment.is_busy

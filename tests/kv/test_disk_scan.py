"""What a file's headers say is believed up to the first that says something else."""

import pytest

from nodeserve.kv.disk_checkpoint import ENTRY, SegmentIndex
from nodeserve.kv.disk_record import PAGE_BYTES, RecordHeader, encode_header
from nodeserve.kv.disk_scan import ScanEnd, SegmentScan
from nodeserve.kv.disk_segment import Place

OURS, THEIRS = b"n" * 32, b"t" * 32
FILE_BYTES = 10 * PAGE_BYTES


def key_of(number):
    return b"%032d" % number


def page_of(number, *, segment=5, sequence=None, namespace=OURS, payload_bytes=5000):
    numbers = (segment, number + 1 if sequence is None else sequence)
    header = RecordHeader(*numbers, namespace, key_of(number), payload_bytes, 0)
    return encode_header(header).ljust(PAGE_BYTES, b"\0")


def scan_of(*pages, known=None, file_bytes=FILE_BYTES):
    scan = SegmentScan(5, file_bytes, OURS, known)
    offsets = []
    for page in pages:
        assert scan.end is None
        offsets.append(scan.next_offset)
        scan.feed(page)
    return scan, offsets


def test_records_follow_one_another_until_a_blank_page() -> None:
    scan, offsets = scan_of(page_of(0), page_of(1), bytes(PAGE_BYTES))
    assert (scan.end, offsets, scan.last_sequence) == (ScanEnd.CLEAN, [0, 12288, 24576], 2)
    assert list(scan.segment.records()) == [
        (key_of(0), Place(5, 0, 12288)),
        (key_of(1), Place(5, 12288, 12288)),
    ]


def test_a_file_without_room_for_another_record_is_at_its_end() -> None:
    scan, _offsets = scan_of(page_of(0), page_of(1), page_of(2))
    assert scan.end is ScanEnd.CLEAN
    assert scan_of(file_bytes=PAGE_BYTES)[0].end is ScanEnd.CLEAN


@pytest.mark.parametrize(
    ("page", "end"),
    [
        (page_of(1, segment=4), ScanEnd.CLEAN),
        (page_of(1, sequence=1), ScanEnd.CLEAN),
        (page_of(1, namespace=THEIRS), ScanEnd.FOREIGN),
        (page_of(1, payload_bytes=30_000), ScanEnd.TRUNCATED),
        (b"\xff" * PAGE_BYTES, ScanEnd.TORN),
        (b"", ScanEnd.TORN),
    ],
)
def test_nothing_is_believed_behind(page, end) -> None:
    scan, _offsets = scan_of(page_of(0), page)
    assert scan.end is end
    assert [key for key, _place in scan.segment.records()] == [key_of(0)]


def test_a_scan_goes_on_behind_what_a_checkpoint_knew() -> None:
    known = SegmentIndex(5, 12288, ENTRY.pack(key_of(0), 0, 3) + ENTRY.pack(key_of(9), 6, 3))
    scan, offsets = scan_of(page_of(1), bytes(PAGE_BYTES), known=known)
    assert (offsets, scan.num_known) == ([12288, 24576], 1)
    # The record behind the known part would have been found by its header.
    assert [key for key, _place in scan.segment.records()] == [key_of(0), key_of(1)]


def test_records_that_a_checkpoint_knew_behind_the_file_s_end_are_gone() -> None:
    entries = ENTRY.pack(key_of(0), 0, 3) + ENTRY.pack(key_of(1), 3, 3)
    known = SegmentIndex(5, 24576, entries)
    scan = SegmentScan(5, 5 * PAGE_BYTES, OURS, known)
    assert [key for key, _place in scan.segment.records()] == [key_of(0)]
    assert scan.next_offset == 12288

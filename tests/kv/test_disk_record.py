"""A record's header: what was packed comes back, and nothing else does."""

from hypothesis import given
from hypothesis import strategies as st

from nodeserve.kv.disk_record import (
    PAGE_BYTES,
    HeaderFault,
    RecordHeader,
    decode_header,
    encode_header,
    in_pages,
    record_bytes,
)

HEADER = RecordHeader(
    segment=7,
    sequence=12,
    namespace=b"n" * 32,
    key=b"k" * 32,
    payload_bytes=5000,
    payload_crc=0xDEADBEEF,
)


def page_of(header: RecordHeader) -> bytearray:
    return bytearray(encode_header(header).ljust(PAGE_BYTES, b"\0"))


def test_a_header_comes_back_as_it_was() -> None:
    assert decode_header(page_of(HEADER)) == HEADER
    assert decode_header(memoryview(page_of(HEADER))) == HEADER


@given(st.integers(0, len(encode_header(HEADER)) * 8 - 1))
def test_a_header_with_any_bit_flipped_is_torn(bit) -> None:
    page = page_of(HEADER)
    page[bit // 8] ^= 1 << bit % 8
    assert decode_header(page) is HeaderFault.TORN


@given(st.integers(0, len(encode_header(HEADER)) - 1))
def test_a_header_cut_short_anywhere_is_torn(length) -> None:
    assert decode_header(encode_header(HEADER)[:length]) is HeaderFault.TORN


def test_zeros_are_blank_and_other_things_torn() -> None:
    assert decode_header(bytes(PAGE_BYTES)) is HeaderFault.BLANK
    assert decode_header(bytes(PAGE_BYTES - 1) + b"\1") is HeaderFault.TORN


def test_a_record_is_whole_pages() -> None:
    assert [in_pages(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
    assert record_bytes(1) == 8192

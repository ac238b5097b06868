"""A checkpoint comes back as it was, or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.kv.disk_checkpoint import (
    ENTRY,
    Checkpoint,
    SegmentIndex,
    checkpoint_bytes,
    decode_checkpoint,
    encode_checkpoint,
)

ENTRIES = ENTRY.pack(b"a" * 32, 0, 3) + ENTRY.pack(b"b" * 32, 3, 2)
CHECKPOINT = Checkpoint(
    namespace=b"n" * 32,
    next_segment=9,
    next_sequence=77,
    segments=(SegmentIndex(4, 20480, ENTRIES), SegmentIndex(8, 0, b"")),
)
CONTENT = encode_checkpoint(CHECKPOINT)


def test_a_checkpoint_comes_back_as_it_was() -> None:
    assert decode_checkpoint(CONTENT) == CHECKPOINT


@given(st.integers(0, len(CONTENT) * 8 - 1))
def test_a_checkpoint_with_any_bit_flipped_is_refused(bit) -> None:
    content = bytearray(CONTENT)
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError):
        decode_checkpoint(bytes(content))


@pytest.mark.parametrize("length", range(len(CONTENT)))
def test_a_checkpoint_cut_short_anywhere_is_refused(length) -> None:
    with pytest.raises(ValueError):
        decode_checkpoint(CONTENT[:length])


def test_a_checkpoint_is_never_larger_than_was_reckoned_with() -> None:
    segment_bytes = 64 << 10
    full = b"".join(ENTRY.pack(b"k" * 32, page, 2) for page in range(0, segment_bytes >> 12, 2))
    segments = tuple(SegmentIndex(number, segment_bytes, full) for number in range(5))
    content = encode_checkpoint(Checkpoint(b"n" * 32, 9, 9, segments))
    assert len(content) == checkpoint_bytes(5, segment_bytes)

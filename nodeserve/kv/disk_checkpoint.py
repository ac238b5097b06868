"""The index of a directory as one file, so that a restart need not look at every record.

It may be older than the segments: a record that it names is believed only once its own header
and checksum say the same, and what was written after it is found by looking at headers.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from nodeserve.kv.disk_record import NAMESPACE_BYTES, PAGE_BYTES
from nodeserve.wire.kv_tier import KEY_BYTES

ENTRY: Final = struct.Struct(f"<{KEY_BYTES}sII")
"""A record: its key, its offset in the segment and its length, both in pages."""

_MAGIC: Final = b"NSKVIDX1"
# Magic, CRC-32 of everything behind it, number of segments, namespace, next sequence, next number.
_HEADER: Final = struct.Struct(f"<8sII{NAMESPACE_BYTES}sQQ")
_CRC_ENDS: Final = 12
# Number, bytes up to which it is known, number of records.
_SEGMENT: Final = struct.Struct("<QQQ")


class SegmentIndex(NamedTuple):
    """One segment's records as packed ``ENTRY``s, all those below ``known_bytes``."""

    number: int
    known_bytes: int
    entries: bytes


class Checkpoint(NamedTuple):
    """A directory's index; numbers from ``next_segment`` and ``next_sequence`` on are unused."""

    namespace: bytes
    next_segment: int
    next_sequence: int
    segments: tuple[SegmentIndex, ...]


def checkpoint_bytes(num_segments: int, segment_bytes: int) -> int:
    """Return what a checkpoint takes at most, all records being as small as can be."""
    most = segment_bytes // (2 * PAGE_BYTES)
    return _HEADER.size + num_segments * (_SEGMENT.size + most * ENTRY.size)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return the file's content."""
    parts = [b""]
    for segment in checkpoint.segments:
        num_records = len(segment.entries) // ENTRY.size
        parts += [_SEGMENT.pack(segment.number, segment.known_bytes, num_records), segment.entries]
    numbers = (checkpoint.namespace, checkpoint.next_sequence, checkpoint.next_segment)
    parts[0] = _HEADER.pack(_MAGIC, 0, len(checkpoint.segments), *numbers)
    body = b"".join(parts)
    crc = zlib.crc32(memoryview(body)[_CRC_ENDS:])
    return body[:8] + crc.to_bytes(4, "little") + body[_CRC_ENDS:]


def decode_checkpoint(content: bytes) -> Checkpoint:
    """Return the checkpoint that was written.

    Raises:
        ValueError: It was not written whole, or has changed since, or is none.
    """
    if len(content) < _HEADER.size or content[:8] != _MAGIC:
        raise ValueError(f"{len(content)} bytes are no checkpoint")
    _, crc, num_segments, namespace, sequence, number = _HEADER.unpack_from(content)
    if crc != zlib.crc32(memoryview(content)[_CRC_ENDS:]):
        raise ValueError(f"a checkpoint of {len(content)} bytes does not add up to its checksum")
    try:
        segments = tuple(_segments(content, num_segments))
    except struct.error as error:
        text = f"a checkpoint of {len(content)} bytes is too short for {num_segments} segments"
        raise ValueError(text) from error
    return Checkpoint(namespace, number, sequence, segments)


def _segments(content: bytes, num_segments: int) -> Iterator[SegmentIndex]:
    at = _HEADER.size
    for _ in range(num_segments):
        number, known_bytes, num_records = _SEGMENT.unpack_from(content, at)
        at += _SEGMENT.size
        end = at + num_records * ENTRY.size
        if end > len(content):
            raise struct.error
        yield SegmentIndex(number, known_bytes, content[at:end])
        at = end

"""A block on disk: one page of header, then the payload, whole pages both.

The header says whose block it is and what its payload must add up to, and where it was written:
a segment's file is used again under another number, so a record that tells another number than
its file's is one of an earlier life. Nothing of this machine but its byte order is in it.
"""

import enum
import struct
import zlib
from typing import Final, NamedTuple

from nodeserve.wire.kv_tier import KEY_BYTES

PAGE_BYTES: Final = 4096
"""What O_DIRECT asks of offsets, lengths and addresses on every common disk."""

NAMESPACE_BYTES: Final = 32

_MAGIC: Final = b"NSKVREC1"
_VERSION: Final = 1
# Magic, version, payload's CRC32C, segment, sequence, payload bytes, namespace, key.
_FIELDS: Final = struct.Struct(f"<8sIIQQQ{NAMESPACE_BYTES}s{KEY_BYTES}s")
_CRC: Final = struct.Struct("<I")


class RecordHeader(NamedTuple):
    """What a record says of itself. ``payload_crc`` is a CRC32C; the header's own is CRC-32."""

    segment: int
    sequence: int
    namespace: bytes
    key: bytes
    payload_bytes: int
    payload_crc: int


class HeaderFault(enum.StrEnum):
    """Why a page is no header."""

    BLANK = "blank"
    """Nothing was ever written here."""
    TORN = "torn"
    """Something else was written here, or what was written has changed."""


def in_pages(num_bytes: int) -> int:
    """Return ``num_bytes`` rounded up to whole pages, in bytes."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def record_bytes(payload_bytes: int) -> int:
    """Return what a record takes on disk."""
    return PAGE_BYTES + in_pages(payload_bytes)


def encode_header(header: RecordHeader) -> bytes:
    """Return the header's bytes, to be followed by zeros up to a whole page."""
    fields = _FIELDS.pack(
        _MAGIC,
        _VERSION,
        header.payload_crc,
        header.segment,
        header.sequence,
        header.payload_bytes,
        header.namespace,
        header.key,
    )
    return fields + _CRC.pack(zlib.crc32(fields))


def decode_header(page: bytes | bytearray | memoryview) -> RecordHeader | HeaderFault:
    """Return the header that ``page`` begins with, or why it is none."""
    if len(page) < _FIELDS.size + _CRC.size:
        return HeaderFault.TORN
    fields = bytes(page[: _FIELDS.size])
    magic, version, crc, segment, sequence, length, namespace, key = _FIELDS.unpack(fields)
    if _CRC.unpack_from(page, _FIELDS.size) != (zlib.crc32(fields),) or magic != _MAGIC:
        return HeaderFault.TORN if any(page) else HeaderFault.BLANK
    if version != _VERSION:
        return HeaderFault.TORN
    return RecordHeader(segment, sequence, namespace, key, length, crc)

"""How a bound on a directory's bytes is cut into segments, so that all of it fits, always."""

from typing import Final, NamedTuple

from nodeserve.errors import ConfigError
from nodeserve.kv.disk_checkpoint import checkpoint_bytes
from nodeserve.kv.disk_record import PAGE_BYTES, record_bytes
from nodeserve.kv.disk_segment import MAX_SEGMENT_BYTES

DEFAULT_SEGMENT_BYTES: Final = 256 << 20
MIN_SEGMENT_BYTES: Final = 64 << 10
MIN_SEGMENTS: Final = 4
"""One being written, one ready after it, one being emptied, one to read from."""

_USUAL_SEGMENTS: Final = 16
"""Below this number a small bound gets smaller segments: whole ones are evicted."""

_HOUSEKEEPING_BYTES: Final = 64 << 10
"""For the directory itself, its lock, the probe file and what they are rounded up to."""


class LogShape(NamedTuple):
    """How a directory is cut: at most ``max_segments`` files of ``segment_bytes`` each.

    ``max_bytes`` is the bound that they keep, everything else in the directory counted.
    """

    max_bytes: int
    segment_bytes: int
    max_segments: int


def plan_log(directory: str, max_bytes: int, segment_bytes: int | None = None) -> LogShape:
    """Return how ``max_bytes`` in ``directory`` are cut; None chooses the segments' size.

    Room is kept for two checkpoints (the next is written beside the last), each as large as the
    smallest records could make it, and for what the file system notes of each file.

    Raises:
        ConfigError: There is no room for four segments, or segments cannot have that size.
    """
    if segment_bytes is None:
        share = max_bytes // _USUAL_SEGMENTS // PAGE_BYTES * PAGE_BYTES
        segment_bytes = max(MIN_SEGMENT_BYTES, min(DEFAULT_SEGMENT_BYTES, share))
    if segment_bytes % PAGE_BYTES or not record_bytes(1) <= segment_bytes < MAX_SEGMENT_BYTES:
        text = (
            f"disk tier {directory}: a segment of {segment_bytes} bytes is not of whole "
            f"{PAGE_BYTES}-byte pages, from {record_bytes(1)} bytes to below {MAX_SEGMENT_BYTES}; "
            "choose another size"
        )
        raise ConfigError(text)
    # A file system may note a file's extents in blocks that count as the file's.
    per_segment = segment_bytes + max(PAGE_BYTES, segment_bytes >> 12)
    per_segment += 2 * (checkpoint_bytes(1, segment_bytes) - checkpoint_bytes(0, segment_bytes))
    fixed = _HOUSEKEEPING_BYTES + 2 * (checkpoint_bytes(0, segment_bytes) + PAGE_BYTES)
    max_segments = (max_bytes - fixed) // per_segment
    if max_segments < MIN_SEGMENTS:
        text = (
            f"disk tier {directory}: {max_bytes} bytes hold {max(0, max_segments)} segments of "
            f"{segment_bytes} bytes, {MIN_SEGMENTS} are the least; allow "
            f"{fixed + MIN_SEGMENTS * per_segment} bytes or more a directory"
        )
        raise ConfigError(text)
    return LogShape(max_bytes, segment_bytes, max_segments)

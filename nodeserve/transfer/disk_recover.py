"""Find out at the start what a directory holds: its checkpoint, then headers, then nothing else.

Nothing found here is believed when it is read: only its header and checksum are.
"""

import mmap
import re
from collections import Counter
from typing import Final

from nodeserve.kv.disk_checkpoint import (
    Checkpoint,
    SegmentIndex,
    checkpoint_bytes,
    decode_checkpoint,
)
from nodeserve.kv.disk_log import DiskLog
from nodeserve.kv.disk_record import PAGE_BYTES
from nodeserve.kv.disk_scan import ScanEnd, SegmentScan
from nodeserve.transfer.disk_files import DirectoryFiles

CHECKPOINT: Final = "checkpoint"

_SEGMENT: Final = re.compile(r"segment-(\d{16})")


def segment_name(number: int) -> str:
    """Return what the file of segment ``number`` is called."""
    return f"segment-{number:016d}"


def recover(files: DirectoryFiles, log: DiskLog, namespace: bytes) -> Counter[str]:
    """Have ``log`` adopt what the directory holds, within its bound; return what was found.

    Raises:
        OSError: The directory cannot be read, or what is too much in it cannot be removed.
    """
    found: Counter[str] = Counter()
    checkpoint = _read_checkpoint(files, log, namespace, found)
    known: dict[int, SegmentIndex] = {}
    if checkpoint is not None:
        log.start_numbers_at(checkpoint.next_segment, checkpoint.next_sequence)
        known = {segment.number: segment for segment in checkpoint.segments}
    page = mmap.mmap(-1, PAGE_BYTES)
    for name, file_bytes in sorted(files.sizes().items()):
        match = _SEGMENT.fullmatch(name)
        if match is None:
            continue
        number = int(match[1])
        if file_bytes > log.shape.segment_bytes:
            # As found where the bound was larger before: its place in the bound is too small.
            files.remove(name)
            log.start_numbers_at(number + 1, 0)
            found["removed_segments"] += 1
            continue
        scan = SegmentScan(number, file_bytes, namespace, known.get(number))
        _run(scan, files, page)
        _adopt(log, scan, found)
        if file_bytes < log.shape.segment_bytes:
            found["short_segments"] += 1
    for number in log.surplus():
        files.remove(segment_name(number))
        found["removed_segments"] += 1
    found["records"] = len(log.index)
    return found


def _read_checkpoint(
    files: DirectoryFiles, log: DiskLog, namespace: bytes, found: Counter[str]
) -> Checkpoint | None:
    sizes = files.sizes()
    for name in sizes:
        if name.startswith(CHECKPOINT) and name != CHECKPOINT:
            files.remove(name)  # one that was never put in its place
    if CHECKPOINT not in sizes:
        return None
    try:
        checkpoint = decode_checkpoint(files.read_whole(CHECKPOINT))
    except ValueError:
        found["bad_checkpoints"] += 1
        files.remove(CHECKPOINT)
        return None
    if sizes[CHECKPOINT] > checkpoint_bytes(log.shape.max_segments, log.shape.segment_bytes):
        files.remove(CHECKPOINT)
    if checkpoint.namespace != namespace:
        log.start_numbers_at(checkpoint.next_segment, checkpoint.next_sequence)
        found["foreign_checkpoints"] += 1
        return None
    return checkpoint


def _run(scan: SegmentScan, files: DirectoryFiles, page: mmap.mmap) -> None:
    name = segment_name(scan.segment.number)
    while scan.end is None:
        num_bytes = files.read_pages(name, [page], scan.next_offset)
        scan.feed(memoryview(page)[:num_bytes])


def _adopt(log: DiskLog, scan: SegmentScan, found: Counter[str]) -> None:
    found["known_records"] += scan.num_known
    log.start_numbers_at(0, scan.last_sequence + 1)
    if scan.end in {ScanEnd.TORN, ScanEnd.TRUNCATED}:
        found[f"{scan.end}_records"] += 1
    if scan.end is ScanEnd.FOREIGN and not scan.segment.entries:
        found["foreign_segments"] += 1
        log.adopt_foreign(scan.segment.number)
    else:
        log.adopt(scan.segment)

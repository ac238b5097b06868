"""What the threads of one directory do: read records, write records, keep up segments and index.

Each is a loop between the desk and the files. Whatever the operating system refuses, even once,
takes the directory out of use: a disk that fails is not asked again.
"""

import logging
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.clock import Clock
from nodeserve.kv.disk_checkpoint import encode_checkpoint
from nodeserve.kv.disk_log import Evict, Job, Prepare, Remove, Reservation
from nodeserve.kv.disk_record import (
    PAGE_BYTES,
    HeaderFault,
    RecordHeader,
    decode_header,
    encode_header,
    in_pages,
    record_bytes,
)
from nodeserve.kv.disk_segment import Place
from nodeserve.transfer.checksum import address_of, crc32c_at, memory_at
from nodeserve.transfer.disk_desk import Batch, Desk, Reads, Transfer
from nodeserve.transfer.disk_files import Buffer, DirectoryFiles
from nodeserve.transfer.disk_options import DiskOptions
from nodeserve.transfer.disk_recover import CHECKPOINT, segment_name

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workplace:
    """What the threads of a directory share."""

    desk: Desk
    files: DirectoryFiles
    namespace: bytes
    options: DiskOptions
    clock: Clock


def read_loop(place: Workplace) -> None:
    """Read records until there will be no more reads."""
    pages = memoryview(mmap.mmap(-1, _most_reads(place.options) * PAGE_BYTES))
    while (batch := place.desk.take_reads()) is not None:
        begun_s = place.clock.now_s()
        faults: Sequence[str] = ["off"] * len(batch)
        try:
            faults = _read_batch(place, batch, pages)
        except OSError as error:
            _fail(place.desk, "reading", error)
        except Exception as error:  # noqa: BLE001 - a bug here costs the tier, never an answer
            _LOG.exception("disk_reader_failed directory=%s", place.desk.directory)
            place.desk.fail(f"reading: {error!r}")
        finally:
            place.desk.end_reads(batch, faults, place.clock.now_s() - begun_s)


def write_loop(place: Workplace) -> None:
    """Write records until there will be no more writes."""
    pages = memoryview(mmap.mmap(-1, place.options.batch_records * PAGE_BYTES))
    while (batch := place.desk.take_writes()) is not None:
        begun_s = place.clock.now_s()
        try:
            _write_batch(place, batch, pages)
        except OSError as error:
            _fail(place.desk, "writing", error)
            place.desk.lose_writes(batch)
        except Exception as error:  # noqa: BLE001 - a bug here costs the tier, never an answer
            _LOG.exception("disk_writer_failed directory=%s", place.desk.directory)
            place.desk.fail(f"writing: {error!r}")
            place.desk.lose_writes(batch)
        else:
            place.desk.end_writes(batch, place.clock.now_s() - begun_s)


def upkeep_loop(place: Workplace) -> None:
    """Prepare, evict and remove segments, write checkpoints and look for the directory."""
    upkeep = _Upkeep(place)
    try:
        while True:
            job = place.desk.take_job(place.options.check_interval_s)
            if job is not None:
                upkeep.do(job)
            elif not place.desk.is_upkept:
                break
            if place.desk.is_upkept and (job is None or upkeep.must_look):
                upkeep.look()
        if not place.desk.off_reason:
            upkeep.write_checkpoint()
    except OSError as error:
        _fail(place.desk, "upkeep", error)
    except Exception as error:  # noqa: BLE001 - a bug here costs the tier, never an answer
        _LOG.exception("disk_upkeep_failed directory=%s", place.desk.directory)
        place.desk.fail(f"upkeep: {error!r}")


def _most_reads(options: DiskOptions) -> int:
    return max(1, options.read_batch_bytes // PAGE_BYTES)


def _read_batch(place: Workplace, batch: Reads, pages: memoryview) -> list[str]:
    """Read payloads to where they are wanted; return what is wrong with each, or nothing."""
    first = batch[0][1]
    if record_bytes(batch[0][0].length) != first.num_bytes:
        return ["length"]
    headers = [pages[at * PAGE_BYTES : (at + 1) * PAGE_BYTES] for at in range(len(batch))]
    buffers: list[Buffer] = []
    for header, (read, _where) in zip(headers, batch, strict=True):
        buffers += [header, memory_at(read.address, in_pages(read.length))]
    num_bytes = place.files.read_pages(segment_name(first.segment), buffers, first.offset)
    return [
        "truncated"
        if num_bytes < where.offset + where.num_bytes - first.offset
        else _fault_of(header, place.namespace, read, where)
        for header, (read, where) in zip(headers, batch, strict=True)
    ]


def _fault_of(page: memoryview, namespace: bytes, read: Transfer, where: Place) -> str:
    header = _believed(page, namespace, read.key, where)
    if header is None:
        return "header"
    if header.payload_bytes != read.length:
        return "length"
    return "" if crc32c_at(read.address, read.length) == header.payload_crc else "payload"


def _believed(page: memoryview, namespace: bytes, key: bytes, where: Place) -> RecordHeader | None:
    """Return the header if it is whole and that of the block at this very place, else None."""
    header = decode_header(page)
    if isinstance(header, HeaderFault):
        return None
    said = (header.segment, header.namespace, header.key, record_bytes(header.payload_bytes))
    return header if said == (where.segment, namespace, key, where.num_bytes) else None


def _write_batch(place: Workplace, batch: Batch, pages: memoryview) -> None:
    buffers: list[Buffer] = []
    for index, (write, reservation) in enumerate(batch):
        page = pages[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
        crc = crc32c_at(write.address, write.length)
        _put_header(page, place.namespace, reservation, (write.key, write.length, crc))
        buffers += [page, memory_at(write.address, in_pages(write.length))]
    first = batch[0][1].place
    place.files.write_pages(segment_name(first.segment), buffers, first.offset)


def _put_header(
    page: memoryview, namespace: bytes, reservation: Reservation, what: tuple[bytes, int, int]
) -> None:
    key, length, crc = what
    header = RecordHeader(
        reservation.place.segment, reservation.sequence, namespace, key, length, crc
    )
    encoded = encode_header(header)
    page[: len(encoded)] = encoded


class _Upkeep:
    """The one thread of a directory that makes, renames and removes its files."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._written: bytes | None = None
        self._written_s = self._looked_s = place.clock.now_s()

    @property
    def must_look(self) -> bool:
        """Whether it is time to look though there is always something to do."""
        since_s = self._place.clock.now_s() - self._looked_s
        return since_s >= self._place.options.check_interval_s

    def do(self, job: Job) -> None:
        """Carry out a job and tell the log."""
        desk, files = self._place.desk, self._place.files
        match job:
            case Prepare(number, reuses):
                name = segment_name(number)
                if reuses is not None:
                    files.rename(segment_name(reuses), name)
                files.allocate(name, desk.log.shape.segment_bytes)
                desk.tell_log(lambda log: log.prepared(number))
            case Evict(number, hot):
                self._move(hot)
                desk.tell_log(lambda log: log.evicted(number))
            case Remove(number):
                files.remove(segment_name(number))
                desk.tell_log(lambda log: log.removed(number))

    def look(self) -> None:
        """Check that the directory is there, and write the index if it is time."""
        self._place.files.check()
        now_s = self._looked_s = self._place.clock.now_s()
        if now_s - self._written_s >= self._place.options.checkpoint_interval_s:
            self.write_checkpoint()

    def write_checkpoint(self) -> None:
        """Write the index, where it has changed."""
        checkpoints = []
        self._place.desk.tell_log(
            lambda log: checkpoints.append(log.checkpoint(self._place.namespace))
        )
        content = encode_checkpoint(checkpoints[0])
        if content[8:12] != self._written:
            self._place.files.replace(CHECKPOINT, content)
            self._written = content[8:12]
        self._written_s = self._place.clock.now_s()

    def _move(self, hot: Sequence[tuple[bytes, Place]]) -> None:
        if not hot:
            return
        desk = self._place.desk
        memory = mmap.mmap(-1, max(where.num_bytes for _key, where in hot))
        view = memoryview(memory)
        for key, where in hot:
            if not desk.is_upkept:
                return
            self._move_one(key, where, view[: where.num_bytes])

    def _move_one(self, key: bytes, where: Place, record: memoryview) -> None:
        desk, files = self._place.desk, self._place.files
        num_bytes = files.read_pages(segment_name(where.segment), [record], where.offset)
        header = _believed(record, self._place.namespace, key, where)
        payload = address_of(record) + PAGE_BYTES
        if (
            header is None
            or num_bytes < where.num_bytes
            or crc32c_at(payload, header.payload_bytes) != header.payload_crc
        ):
            desk.tell_log(lambda log: log.drop(key, where))
            return
        reservation = desk.reserve_moved(header.payload_bytes)
        if reservation is None:
            return
        what = (key, header.payload_bytes, header.payload_crc)
        _put_header(record[:PAGE_BYTES], self._place.namespace, reservation, what)
        to = reservation.place
        files.write_pages(segment_name(to.segment), [record], to.offset)
        desk.count_moved(key, where, to)


def _fail(desk: Desk, what: str, error: OSError) -> None:
    name = f" {error.filename}" if error.filename else ""
    desk.fail(f"{what}{name}: {error.strerror or error}")

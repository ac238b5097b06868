"""Where one directory's callers and threads meet: its log, its queues and one lock over both.

Callers put reads and writes in; reader, writer and upkeep threads take them out, wait here when
there is nothing to do, and bring back how it went. No file is touched here.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.kv.disk_log import DiskLog, Job, Reservation
from nodeserve.kv.disk_record import record_bytes
from nodeserve.kv.disk_segment import Place
from nodeserve.transfer.disk_options import DiskOptions
from nodeserve.transfer.disk_store import DirectoryStats, Done

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A read or write that a caller asked for."""

    key: bytes
    address: int
    length: int
    done: Done


Reads = Sequence[tuple[Transfer, Place]]
Batch = Sequence[tuple[Transfer, Reservation]]


class Desk:
    """One directory's work. Every method may be called on any thread."""

    def __init__(
        self, directory: str, log: DiskLog, options: DiskOptions, on_failed: Callable[[str], None]
    ) -> None:
        """``on_failed`` is told once why the directory works no more."""
        self.directory: Final = directory
        self.off_reason = ""
        self.counts: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()
        self.pending_bytes = 0
        self._log = log
        self._options = options
        self._on_failed = on_failed
        self._lock = threading.Lock()
        self._readers = threading.Condition(self._lock)
        self._writers = threading.Condition(self._lock)
        self._upkeep = threading.Condition(self._lock)
        self._reads: deque[Transfer] = deque()
        self._writes: deque[Transfer] = deque()
        self._num_reading = 0
        self._writing: set[bytes] = set()
        self._is_closing = False
        self._is_upkept = True
        self._needs_word = False
        """Whether the upkeep thread waits for somebody to be through with a file."""
        self.busy_s = {"read": 0.0, "write": 0.0}

    # ------------------------------------------------------------------ callers

    @property
    def log(self) -> DiskLog:
        """The log, to look at: its index, bound and counters. It is changed here alone."""
        return self._log

    @property
    def num_queued(self) -> tuple[int, int]:
        """How many reads and writes wait or are under way."""
        return len(self._reads) + self._num_reading, len(self._writing)

    def counters(self) -> tuple[Counter[str], Counter[str]]:
        """Return copies of what was counted, and of the misses by kind."""
        with self._lock:
            return Counter(self.counts), Counter(self.misses)

    def stats(self, *, direct: bool) -> DirectoryStats:
        """Return what the directory holds and did."""
        with self._lock:
            return DirectoryStats(
                directory=self.directory,
                off_reason=self.off_reason,
                direct=direct,
                max_bytes=self._log.shape.max_bytes,
                used_bytes=self._log.num_files * self._log.shape.segment_bytes,
                num_records=len(self._log.index),
                num_segments=self._log.num_files,
                written_bytes=self.counts["written_bytes"],
                read_bytes=self.counts["read_bytes"],
                write_busy_s=self.busy_s["write"],
                read_busy_s=self.busy_s["read"],
            )

    def knows(self, key: bytes) -> bool:
        """Return whether the block is stored here or being stored."""
        return key in self._log.index or key in self._writing

    def read(self, read: Transfer) -> str:
        """Take a read in; return why not, or nothing."""
        with self._lock:
            if self.off_reason or self._is_closing:
                return "off"
            if read.key not in self._log.index:
                return "unknown"
            if len(self._reads) + self._num_reading >= self._options.max_queued_reads:
                return "reads_full"
            self._reads.append(read)
            self._readers.notify()
        return ""

    def write(self, write: Transfer) -> str:
        """Take a write in; return why not, or nothing."""
        with self._lock:
            if self.off_reason or self._is_closing:
                return "off"
            if record_bytes(write.length) > self._log.shape.segment_bytes:
                return "too_large"
            if self.knows(write.key):
                return "known"
            if len(self._writing) >= self._options.max_queued_writes:
                return "writes_full"
            self._writes.append(write)
            self._writing.add(write.key)
            self.pending_bytes += write.length
            self._writers.notify()
        return ""

    def forget(self, keys: Iterable[bytes]) -> None:
        """Have these blocks no more."""
        with self._lock:
            self._log.forget(keys)

    def clear(self) -> None:
        """Have no block any more."""
        with self._lock:
            dropped, self._writes = list(self._writes), deque()
            for write in dropped:
                self._forget_write(write)
            self._log.clear()
            self._upkeep.notify()
        tell(dropped, ok=False)

    def fail(self, reason: str) -> None:
        """The directory works no more: what waits is over, and threads end."""
        with self._lock:
            if self.off_reason:
                return
            self.off_reason = reason
            waiting = self._end()
            self._log.forget(list(self._log.index))
        self._on_failed(reason)
        tell(waiting, ok=False)

    def close(self) -> None:
        """Take nothing in any more; threads end when what is here is done."""
        with self._lock:
            self._is_closing = True
            self._wake()

    def abandon(self) -> None:
        """Let what still waits be over; threads end after what is under way."""
        with self._lock:
            waiting = self._end()
        tell(waiting, ok=False)

    def end_upkeep(self) -> None:
        """Have the upkeep thread end once nothing is left to remove."""
        with self._lock:
            self._is_upkept = False
            self._wake()

    # ------------------------------------------------------------------ readers

    def take_reads(self) -> Reads | None:
        """Wait for reads and return some that lie behind one another in a segment.

        None means that there will be none.
        """
        while True:
            with self._lock:
                while not self._reads:
                    if self._is_closing or self.off_reason:
                        return None
                    self._readers.wait()
                read = self._reads.popleft()
                place = self._log.begin_read(read.key)
                if place is not None:
                    batch = [(read, place)]
                    self._add_reads_behind(batch)
                    self._num_reading += len(batch)
                    return batch
                self.misses["evicted"] += 1
            tell([read], ok=False)

    def end_reads(self, batch: Reads, faults: Sequence[str], busy_s: float) -> None:
        """Reads are over; each one's fault is what was wrong with the record, or nothing."""
        found: list[Transfer] = []
        missed: list[Transfer] = []
        with self._lock:
            self._num_reading -= len(batch)
            self.busy_s["read"] += busy_s
            for (read, place), fault in zip(batch, faults, strict=True):
                self._log.end_read(place)
                (missed if fault else found).append(read)
                if fault:
                    self.misses[fault] += 1
                    self._log.drop(read.key, place)
            self.counts["found"] += len(found)
            self.counts["read_bytes"] += sum(read.length for read in found)
            self._upkeep_if_waiting()
        tell(found, ok=True)
        tell(missed, ok=False)

    # ------------------------------------------------------------------ writers

    def take_writes(self) -> Batch | None:
        """Wait for writes and for room, and return some that lie behind one another in a segment.

        None means that there will be none.
        """
        with self._lock:
            while True:
                if self.off_reason or (self._is_closing and not self._writes):
                    return None
                batch = self._next_batch()
                if batch:
                    return batch
                if self._writes:
                    self._upkeep.notify()
                self._writers.wait()

    def end_writes(self, batch: Batch, busy_s: float) -> None:
        """Writes are over and well."""
        stored: list[Transfer] = []
        dropped: list[Transfer] = []
        with self._lock:
            self.busy_s["write"] += busy_s
            for write, reservation in batch:
                is_stored = self._log.commit(write.key, reservation.place)
                (stored if is_stored else dropped).append(write)
                self._forget_write(write)
            self.counts["stored"] += len(stored)
            self.counts["written_bytes"] += sum(write.length for write in stored)
            if self.off_reason:
                self._log.forget(write.key for write in stored)
            self._upkeep_if_waiting()
        tell(stored, ok=True)
        tell(dropped, ok=False)

    def lose_writes(self, batch: Batch) -> None:
        """Writes have failed; ``fail`` has been told why."""
        with self._lock:
            for write, reservation in batch:
                self._log.abandon(reservation.place)
                self._forget_write(write)
        tell([write for write, _reservation in batch], ok=False)

    # ------------------------------------------------------------------ upkeep

    def take_job(self, timeout_s: float) -> Job | None:
        """Wait for something to do with files; None when there was nothing for so long."""
        with self._lock:
            job = self._next_job()
            if job is None and self.is_upkept:
                self._needs_word = not self._log.is_settled
                self._upkeep.wait(timeout_s)
                job = self._next_job()
            self._needs_word = False
            return job

    @property
    def is_upkept(self) -> bool:
        """Whether the upkeep thread shall go on."""
        return self._is_upkept and not self.off_reason

    def tell_log(self, told: Callable[[DiskLog], None]) -> None:
        """Change the log by ``told``, and let writers look for room again."""
        with self._lock:
            told(self._log)
            self._writers.notify_all()

    def reserve_moved(self, payload_bytes: int) -> Reservation | None:
        """Take room for a record that is moved, if the open segment has it."""
        with self._lock:
            if not self._log.has_room(payload_bytes):
                return None
            return self._log.reserve(payload_bytes)

    def count_moved(self, key: bytes, old: Place, place: Place) -> None:
        """A record of an evicted segment has been written anew at ``place``."""
        with self._lock:
            if self._log.commit_moved(key, old, place):
                self.counts["reinserted"] += 1

    # ------------------------------------------------------------------ inside

    def _add_reads_behind(self, batch: list[tuple[Transfer, Place]]) -> None:
        """Add what waits next, as long as it is next on disk and the other readers get theirs."""
        read, place = batch[0]
        num_bytes = place.num_bytes
        most = -(-len(self._reads) // self._options.num_readers)
        while self._reads and len(batch) < most and record_bytes(read.length) == place.num_bytes:
            read = self._reads[0]
            at = Place(place.segment, place.offset + place.num_bytes, record_bytes(read.length))
            num_bytes += at.num_bytes
            if num_bytes > self._options.read_batch_bytes or not self._log.is_at(read.key, at):
                return
            place = at
            self._log.begin_read(read.key)
            batch.append((self._reads.popleft(), place))

    def _next_job(self) -> Job | None:
        if self.off_reason:
            return None
        return self._log.next_job() if self._is_upkept else self._log.next_removal()

    def _next_batch(self) -> Batch:
        batch: list[tuple[Transfer, Reservation]] = []
        num_bytes = 0
        while self._writes and len(batch) < self._options.batch_records:
            length = self._writes[0].length
            if batch and (
                num_bytes + length > self._options.batch_bytes or not self._log.has_room(length)
            ):
                break
            reservation = self._log.reserve(length)
            if reservation is None:
                break
            batch.append((self._writes.popleft(), reservation))
            num_bytes += length
        if not self._log.is_settled:
            self._upkeep.notify()
        return batch

    def _forget_write(self, write: Transfer) -> None:
        self._writing.discard(write.key)
        self.pending_bytes -= write.length

    def _end(self) -> list[Transfer]:
        waiting = [*self._reads, *self._writes]
        self.misses["off"] += len(self._reads)
        for write in self._writes:
            self._forget_write(write)
        self._reads.clear()
        self._writes.clear()
        self._is_closing = True
        self._wake()
        return waiting

    def _upkeep_if_waiting(self) -> None:
        if self._needs_word:
            self._upkeep.notify()

    def _wake(self) -> None:
        for condition in (self._readers, self._writers, self._upkeep):
            condition.notify_all()


def tell(transfers: Iterable[Transfer], *, ok: bool) -> None:
    """Call each one's ``done``; a caller's error is its own and stops nothing."""
    for transfer in transfers:
        try:
            transfer.done(ok)
        except Exception:  # noqa: BLE001 - the caller's own bug must not end our thread
            _LOG.exception("disk_done_failed key=%s ok=%s", transfer.key.hex()[:16], ok)

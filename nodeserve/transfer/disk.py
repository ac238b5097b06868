"""The disk tier: blocks on one or more directories, each with a log of its own.

A record lies in one directory whole, so that one directory's failure costs what it held and the
others go on. How records become files is in ``kv.disk_log``; who does what when in ``disk_desk``
and ``disk_threads``.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from nodeserve.clock import Clock, MonotonicClock
from nodeserve.errors import ConfigError
from nodeserve.kv.disk_bound import LogShape, plan_log
from nodeserve.kv.disk_log import DiskLog
from nodeserve.kv.disk_record import NAMESPACE_BYTES
from nodeserve.kv.disk_stripe import next_directory
from nodeserve.transfer import checksum
from nodeserve.transfer.disk_desk import Desk, Transfer
from nodeserve.transfer.disk_files import DirectoryFiles, OsFiles
from nodeserve.transfer.disk_options import DiskOptions
from nodeserve.transfer.disk_recover import recover
from nodeserve.transfer.disk_store import (
    ALIGN_BYTES,
    DirectoryLost,
    DirectoryStats,
    DiskStats,
    Done,
    OnLost,
    StoreState,
)
from nodeserve.transfer.disk_threads import Workplace, read_loop, upkeep_loop, write_loop
from nodeserve.wire.spawn import DiskTierSpec

_LOG: Final = logging.getLogger(__name__)

OpenFiles = Callable[[str], DirectoryFiles]


class _Directory:
    """One directory with its threads; ``files`` is None where it could not even be opened."""

    def __init__(self, desk: Desk, files: DirectoryFiles | None) -> None:
        self.desk = desk
        self.files = files
        self.movers: list[threading.Thread] = []
        self.upkeep: list[threading.Thread] = []

    def start(self, place: Workplace) -> None:
        """Start the threads."""
        loops = [read_loop] * place.options.num_readers + [write_loop] * place.options.num_writers
        self.movers = [self._thread(loop, place) for loop in loops]
        self.upkeep = [self._thread(upkeep_loop, place)]

    @staticmethod
    def _thread(loop: Callable[[Workplace], None], place: Workplace) -> threading.Thread:
        # A disk that hangs must not keep the process from ending.
        thread = threading.Thread(target=loop, args=(place,), name=loop.__name__, daemon=True)
        thread.start()
        return thread

    def stats(self) -> DirectoryStats:
        """Return what it holds and did."""
        return self.desk.stats(direct=self.files is not None and self.files.direct)


class LogDiskStore:
    """The ``DiskStore`` of real directories."""

    def __init__(self, directories: Sequence[_Directory], recovered: Counter[str]) -> None:
        """Made by ``open_disk_store`` only."""
        self._directories = directories
        self._recovered = recovered
        self._refused: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._num_writes = 0
        self._is_closed = False

    @property
    def state(self) -> StoreState:
        """Whether any directory works."""
        return StoreState.OFF if self._is_closed or not self._working() else StoreState.OPEN

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Return for each key whether a read would be tried."""
        if self._is_closed:
            return [False] * len(keys)
        if len(self._directories) == 1:
            index = self._directories[0].desk.log.index
            return [key in index for key in keys]
        indexes = [directory.desk.log.index for directory in self._directories]
        return [any(key in index for index in indexes) for key in keys]

    def read(self, key: bytes, address: int, length: int, done: Done) -> bool:
        """Read the block of ``key`` to ``address``."""
        _check(key, address)
        read = Transfer(key, address, length, done)
        desks = self._working()
        refusal = "unknown" if desks else "off"
        for desk in desks:
            if key in desk.log.index:
                refusal = desk.read(read)
                break
        return self._is_accepted(refusal)

    def write(self, key: bytes, address: int, length: int, done: Done) -> bool:
        """Store the bytes at ``address`` under ``key``."""
        _check(key, address)
        desks = self._working()
        if not desks:
            return self._is_accepted("off")
        if any(desk.knows(key) for desk in desks):
            return self._is_accepted("known")
        self._num_writes += 1
        chosen = next_directory([desk.pending_bytes for desk in desks], self._num_writes)
        return self._is_accepted(desks[chosen].write(Transfer(key, address, length, done)))

    def forget(self, keys: Sequence[bytes]) -> None:
        """Contain these keys no more."""
        for directory in self._directories:
            directory.desk.forget(keys)

    def clear(self) -> None:
        """Drop every block."""
        for directory in self._directories:
            directory.desk.clear()

    def stats(self) -> DiskStats:
        """Return what the tier holds and did."""
        desks = [directory.desk for directory in self._directories]
        directories = tuple(directory.stats() for directory in self._directories)
        copies = [desk.counters() for desk in desks]
        counts = sum((counts for counts, _misses in copies), Counter[str]())
        queued = [desk.num_queued for desk in desks]
        return DiskStats(
            state=self.state,
            max_bytes=sum(directory.max_bytes for directory in directories),
            used_bytes=sum(directory.used_bytes for directory in directories),
            num_records=sum(directory.num_records for directory in directories),
            num_stored=counts["stored"],
            num_found=counts["found"],
            num_evicted=sum(desk.log.num_evicted for desk in desks),
            num_reinserted=counts["reinserted"],
            queued_writes=sum(writes for _reads, writes in queued),
            queued_reads=sum(reads for reads, _writes in queued),
            misses=dict(sum((misses for _counts, misses in copies), Counter[str]())),
            refused=dict(self._refused),
            recovered=dict(self._recovered),
            directories=directories,
        )

    def close(self, deadline_s: float) -> None:
        """Write what waits, for half of ``deadline_s``, then the index, and let go."""
        clock = MonotonicClock()
        begun_s = clock.now_s()
        self._is_closed = True
        for directory in self._directories:
            directory.desk.close()
        movers = [thread for directory in self._directories for thread in directory.movers]
        _join(movers, clock, begun_s + deadline_s / 2)
        for directory in self._directories:
            directory.desk.abandon()
        _join(movers, clock, begun_s + deadline_s * 3 / 4)
        for directory in self._directories:
            directory.desk.end_upkeep()
        _join([t for d in self._directories for t in d.upkeep], clock, begun_s + deadline_s)
        for directory in self._directories:
            threads = [*directory.movers, *directory.upkeep]
            if any(thread.is_alive() for thread in threads):
                _LOG.warning("disk_close_hangs directory=%s", directory.desk.directory)
            elif directory.files is not None:
                directory.files.close()

    def _working(self) -> list[Desk]:
        return [d.desk for d in self._directories if not d.desk.off_reason]

    def _is_accepted(self, refusal: str) -> bool:
        if refusal:
            with self._counting:
                self._refused[refusal] += 1
        return not refusal


def open_disk_store(
    spec: DiskTierSpec,
    namespace: bytes,
    *,
    on_lost: OnLost,
    options: DiskOptions | None = None,
    open_files: OpenFiles = OsFiles,
    clock: Clock | None = None,
) -> LogDiskStore:
    """Open the directories and find what they hold under ``namespace``, of 32 bytes.

    Blocks for as long as the disks take: a moment with a checkpoint, or one small read for every
    record without. A directory that does not work is lost, by ``on_lost``; where none works the
    store is OFF from the start.

    Raises:
        ConfigError: The spec can never work.
        PeerError: Another process has one of the directories.
    """
    shapes = _plan(spec, namespace, options or DiskOptions())
    opening = _Opening(namespace, on_lost, options or DiskOptions(), clock or MonotonicClock())
    opening.num_left = len(shapes)
    opened: list[_Directory] = []
    try:
        for path, shape in shapes.items():
            opened.append(opening.open(path, shape, open_files))
        with ThreadPoolExecutor(len(opened)) as pool:
            recovered = sum(pool.map(opening.recover, opened), Counter())
    except BaseException:
        for directory in opened:
            if directory.files is not None:
                directory.files.close()
        raise
    for directory in opened:
        opening.start(directory)
    return LogDiskStore(opened, recovered)


class _Opening:
    """What opening all directories has in common, and how many of them are left."""

    def __init__(
        self, namespace: bytes, on_lost: OnLost, options: DiskOptions, clock: Clock
    ) -> None:
        self._namespace = namespace
        self._on_lost = on_lost
        self._options = options
        self._clock = clock
        self.num_left = 0
        self._lock = threading.Lock()

    def open(self, path: str, shape: LogShape, open_files: OpenFiles) -> _Directory:
        """Open one directory, or find it lost."""
        desk = Desk(path, DiskLog(shape), self._options, lambda reason: self._lose(path, reason))
        try:
            return _Directory(desk, open_files(path))
        except OSError as error:
            desk.fail(f"opening: {error}")
            return _Directory(desk, None)

    def recover(self, directory: _Directory) -> Counter[str]:
        """Find out what one directory holds."""
        if directory.files is None:
            return Counter()
        desk = directory.desk
        try:
            found = recover(directory.files, desk.log, self._namespace)
        except OSError as error:
            desk.fail(f"looking for records: {error}")
            return Counter()
        shape = desk.log.shape
        text = "disk_directory_open directory=%s direct=%s max_bytes=%d segments=%dx%d found=%s"
        numbers = (shape.max_bytes, shape.max_segments, shape.segment_bytes)
        _LOG.info(text, desk.directory, directory.files.direct, *numbers, dict(found))
        if not directory.files.direct:
            _LOG.warning(
                "disk_buffered directory=%s its file system lacks O_DIRECT", desk.directory
            )
        return found

    def start(self, directory: _Directory) -> None:
        """Start one directory's threads, where it works."""
        if directory.files is not None and not directory.desk.off_reason:
            desk, files = directory.desk, directory.files
            directory.start(Workplace(desk, files, self._namespace, self._options, self._clock))

    def _lose(self, path: str, reason: str) -> None:
        with self._lock:
            self.num_left -= 1
            lost = DirectoryLost(path, reason, self.num_left)
        text = "disk_directory_lost directory=%s reason=%r left=%d"
        _LOG.error(text, lost.directory, lost.reason, lost.num_left)
        self._on_lost(lost)


def _plan(spec: DiskTierSpec, namespace: bytes, options: DiskOptions) -> dict[str, LogShape]:
    if len(namespace) != NAMESPACE_BYTES:
        text = f"disk tier: a namespace of {len(namespace)} bytes; {NAMESPACE_BYTES} are needed"
        raise ConfigError(text)
    num = len(spec.directories)
    if num == 0 or len({Path(path).resolve() for path in spec.directories}) < num:
        text = f"disk tier: directories are {spec.directories}; name one or more different ones"
        raise ConfigError(text)
    if not checksum.NATIVE:
        _LOG.warning("disk_checksum_slow this processor computes no CRC32C")
    share = spec.max_bytes // num
    return {path: plan_log(path, share, options.segment_bytes) for path in spec.directories}


def _join(threads: Iterable[threading.Thread], clock: Clock, until_s: float) -> None:
    for thread in threads:
        thread.join(max(0.0, until_s - clock.now_s()))


def _check(key: bytes, address: int) -> None:
    if len(key) != 32 or address % ALIGN_BYTES:
        text = (
            f"disk tier: key of {len(key)} bytes, address {address:#x}; 32 bytes are needed, and "
            f"a multiple of {ALIGN_BYTES}"
        )
        raise ValueError(text)

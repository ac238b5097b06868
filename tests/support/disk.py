"""What tests of the disk tier share: memory to read into, calls to wait for, faults, accounting."""

import hashlib
import mmap
import threading
from pathlib import Path

from nodeserve.transfer.checksum import address_of
from nodeserve.transfer.disk import open_disk_store
from nodeserve.transfer.disk_files import OsFiles
from nodeserve.transfer.disk_options import DiskOptions
from nodeserve.wire.spawn import DiskTierSpec

NAMESPACE = b"N" * 32
SEGMENT_BYTES = 64 << 10
DEADLINE_S = 30.0
OPTIONS = DiskOptions(segment_bytes=SEGMENT_BYTES, num_readers=2, num_writers=2)


def key_of(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def payload_of(number: int, length: int) -> bytes:
    """Bytes that no other block has, nor another place of the same one."""
    return hashlib.shake_128(b"%d" % number).digest(length)


class Slots:
    """Page-aligned memory cut into slots, like an arena."""

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        self.memory = mmap.mmap(-1, num_slots * slot_bytes)
        self.address = address_of(self.memory)

    def at(self, slot: int) -> int:
        return self.address + slot * self.slot_bytes

    def put(self, slot: int, content: bytes) -> int:
        begin = slot * self.slot_bytes
        self.memory[begin : begin + len(content)] = content
        return self.at(slot)

    def get(self, slot: int, length: int) -> bytes:
        begin = slot * self.slot_bytes
        return self.memory[begin : begin + length]


class Call:
    """A ``done`` to wait for."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.outcomes: list[bool] = []

    def __call__(self, outcome: bool) -> None:
        self.outcomes.append(outcome)
        self._event.set()

    def wait(self) -> bool:
        assert self._event.wait(DEADLINE_S), "done was never called"
        assert len(self.outcomes) == 1
        return self.outcomes[0]


class StoreDriver:
    """A store with slots of its own: puts and gets blocks by number, one after the other."""

    def __init__(self, *paths, max_bytes, length=5000, namespace=NAMESPACE, **settings) -> None:
        self.length = length
        self._lost = []
        self._is_lost = threading.Condition()
        self.slots = Slots(4, -(-length // 4096) * 4096)
        settings.setdefault("options", OPTIONS)
        self.store = open_disk_store(
            DiskTierSpec(directories=tuple(map(str, paths)), max_bytes=max_bytes),
            namespace,
            on_lost=self._lose,
            **settings,
        )

    def _lose(self, lost) -> None:
        with self._is_lost:
            self._lost.append(lost)
            self._is_lost.notify_all()

    def lost(self, num: int) -> list:
        """Wait until ``num`` directories are lost and return what was said of each."""
        with self._is_lost:
            assert self._is_lost.wait_for(lambda: len(self._lost) >= num, DEADLINE_S)
            return list(self._lost)

    def put(self, number: int) -> bool:
        """Store a block; False where it was refused or lost."""
        call = Call()
        address = self.slots.put(0, payload_of(number, self.length))
        if not self.store.write(key_of(number), address, self.length, call):
            return False
        return call.wait()

    def get(self, number: int) -> bool:
        """Whether the block is there; that it is right if so is asserted."""
        call = Call()
        if not self.store.read(key_of(number), self.slots.at(1), self.length, call):
            return False
        if not call.wait():
            return False
        assert self.slots.get(1, self.length) == payload_of(number, self.length)
        return True

    def has(self, *numbers: int) -> list[int]:
        found = self.store.contains([key_of(number) for number in numbers])
        return [number for number, is_there in zip(numbers, found, strict=True) if is_there]

    def close(self) -> None:
        self.store.close(DEADLINE_S)


def used_bytes(path: Path) -> int:
    """What ``du`` would say: disk blocks of the directory and everything in it."""
    total = 0
    for entry in [path, *path.iterdir()]:
        try:
            total += entry.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


class WatchedFiles(OsFiles):
    """Calls ``hook(operation)`` before each operation; what it raises is the system's answer."""

    def __init__(self, path: str, hook) -> None:
        self.hook = hook
        super().__init__(path)

    def read_pages(self, name, buffers, offset):
        self.hook("read")
        return super().read_pages(name, buffers, offset)

    def write_pages(self, name, buffers, offset):
        self.hook("write")
        super().write_pages(name, buffers, offset)

    def allocate(self, name, num_bytes):
        self.hook("allocate")
        super().allocate(name, num_bytes)

    def rename(self, old, new):
        self.hook("rename")
        super().rename(old, new)

    def remove(self, name):
        self.hook("remove")
        super().remove(name)

    def replace(self, name, content):
        self.hook("replace")
        super().replace(name, content)


def watched_by(hook):
    """What opens directories whose every operation ``hook`` hears of first."""
    return lambda path: WatchedFiles(path, hook)

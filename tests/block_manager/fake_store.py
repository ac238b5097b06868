"""A disk tier that is a dict: copies at once, ends calls later on a thread, or when told."""

import ctypes
import threading

from nodeserve.transfer.disk_store import DirectoryLost, DiskStats, StoreState


class FakeStore:
    """Blocks by key. ``hold`` keeps calls from ending until ``end_all``."""

    def __init__(self, *, hold=False, max_writes=100) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.state = StoreState.OPEN
        self.hold = hold
        self.held = []
        self.max_writes = max_writes
        self.failing = False
        self.closed = False

    def contains(self, keys):
        return [key in self.blocks and self.state is StoreState.OPEN for key in keys]

    def read(self, key, address, length, done):
        if key not in self.blocks:
            return False
        self._do(lambda: self._load(key, address, length), done)
        return True

    def write(self, key, address, length, done):
        if key in self.blocks or len(self.held) >= self.max_writes:
            return False
        self._do(lambda: self.blocks.update({key: ctypes.string_at(address, length)}), done)
        return True

    def _load(self, key, address, length) -> None:
        ctypes.memmove(address, self.blocks[key], length)

    def _do(self, action, done) -> None:
        def end() -> None:
            if not self.failing:
                action()
            done(not self.failing)

        if self.hold:
            self.held.append(end)
        else:
            threading.Thread(target=end).start()

    def end_all(self) -> None:
        held, self.held = self.held, []
        for end in held:
            end()

    def forget(self, keys) -> None:
        for key in keys:
            self.blocks.pop(key, None)

    def clear(self) -> None:
        self.blocks.clear()

    def stats(self):
        return DiskStats(
            state=self.state,
            max_bytes=1 << 20,
            used_bytes=sum(map(len, self.blocks.values())),
            num_records=len(self.blocks),
            num_stored=len(self.blocks),
            num_found=0,
            num_evicted=0,
            num_reinserted=0,
            queued_writes=0,
            queued_reads=0,
            misses={"payload": 2, "evicted": 5},
        )

    def close(self, deadline_s) -> None:
        self.closed = True


def open_fake_store(spec, namespace, on_lost):
    """Open a store that works, or as the name of its directory says."""
    store = FakeStore()
    if "lost" in spec.directories[0]:
        store.state = StoreState.OFF
        on_lost(DirectoryLost(spec.directories[0], "no such directory", 0))
    return store

"""The disk tier as the block manager's loop uses it: calls that end later, inside the loop."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from nodeserve.transfer.disk_store import DiskStats, DiskStore, OnLost, StoreState
from nodeserve.wire.spawn import DiskTierSpec

OpenStore = Callable[[DiskTierSpec, bytes, OnLost], DiskStore]
"""Opens the directories under a namespace; blocks, so it is called on a thread.

It may raise ConfigError, for a spec that can never work, and PeerError where another process has
a directory.
"""

Ended = Callable[[int, bool], None]
"""Told in the loop of the slot whose read or write has ended, and whether it is done."""


class DiskTier:
    """An open store; make it in the running loop."""

    def __init__(
        self, store: DiskStore, address_of: Callable[[int], int], block_bytes: int
    ) -> None:
        """Move blocks of ``block_bytes`` between ``store`` and slots at ``address_of``."""
        self._store = store
        self._address_of = address_of
        self._block_bytes = block_bytes
        self._loop = asyncio.get_running_loop()

    @property
    def works(self) -> bool:
        """Whether any directory works."""
        return self._store.state is StoreState.OPEN

    def present(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return those of ``keys`` that a read would be tried for, in their order."""
        there = self._store.contains(keys)
        return [key for key, is_there in zip(keys, there, strict=True) if is_there]

    def read(self, slot: int, key: bytes, ended: Ended) -> bool:
        """Read a block into a slot; ``ended`` is called later if that was accepted."""
        address = self._address_of(slot)
        return self._store.read(key, address, self._block_bytes, self._later(slot, ended))

    def write(self, slot: int, key: bytes, ended: Ended) -> bool:
        """Keep a slot's block; ``ended`` is called later if that was accepted."""
        address = self._address_of(slot)
        return self._store.write(key, address, self._block_bytes, self._later(slot, ended))

    def clear(self) -> None:
        """Drop every block."""
        self._store.clear()

    def stats(self) -> DiskStats:
        """Return what the tier holds and did."""
        return self._store.stats()

    def close(self, deadline_s: float) -> None:
        """Write what waits, for at most ``deadline_s``; blocks."""
        self._store.close(deadline_s)

    def _later(self, slot: int, ended: Ended) -> Callable[[bool], None]:
        def done(is_done: bool) -> None:  # noqa: FBT001
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(ended, slot, is_done)

        return done

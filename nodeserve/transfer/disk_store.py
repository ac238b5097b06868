"""What the block manager sees of the disk tier: blocks by key, to and from its own memory.

Nothing here blocks on a disk but opening and closing. A read or write that is accepted calls its
``done`` exactly once, on one of the store's threads; one that is not accepted never does, and its
memory is the caller's again at once. ``done`` may be called before ``read`` or ``write`` has
returned, must not block and must not raise; a loop's ``call_soon_threadsafe`` is what it is for.

Addresses are multiples of ``ALIGN_BYTES``, and what lies from there to the next multiple behind
``length`` belongs to the call too: it is read into and written out.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

ALIGN_BYTES: Final = 4096

Done = Callable[[bool], None]
"""Told of the end of a read (whether the block is there, whole) or write (whether it is stored)."""


class StoreState(enum.StrEnum):
    """Whether the disk tier works."""

    OPEN = "open"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class DirectoryLost:
    """A directory of the tier does not work any more, for ``reason``, until the next start.

    What it holds is missed from now on; the tier goes on with those that are left, and is OFF
    when there are none.
    """

    directory: str
    reason: str
    num_left: int


OnLost = Callable[[DirectoryLost], None]
"""Told once of each directory that is lost, on any thread, also while the store is opened."""


@dataclass(frozen=True, slots=True)
class DirectoryStats:
    """One directory now; bytes ``written`` and ``read`` are of payloads, since the start.

    ``write_busy_s`` and ``read_busy_s`` are the time its threads spent in the file system, added
    up. ``off_reason`` is empty while it works. ``direct`` is whether its I/O passes the page cache.
    """

    directory: str
    off_reason: str
    direct: bool
    max_bytes: int
    used_bytes: int
    num_records: int
    num_segments: int
    written_bytes: int
    read_bytes: int
    write_busy_s: float
    read_busy_s: float


@dataclass(frozen=True, slots=True)
class DiskStats:
    """The tier now; numbers ``stored`` and so on count since the start.

    ``misses`` counts by kind the reads that were accepted and found nothing whole; ``refused`` by
    kind those reads and writes that were not accepted; ``recovered`` what opening found, by kind.
    """

    state: StoreState
    max_bytes: int
    used_bytes: int
    num_records: int
    num_stored: int
    num_found: int
    num_evicted: int
    num_reinserted: int
    queued_writes: int
    queued_reads: int
    misses: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    recovered: dict[str, int] = field(default_factory=dict)
    directories: tuple[DirectoryStats, ...] = ()


class DiskStore(Protocol):
    """Blocks on disk under one namespace. Every method may be called on any thread."""

    @property
    def state(self) -> StoreState:
        """Whether any directory works; OFF refuses every call, and nothing is contained."""
        ...

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Return for each key whether a read would be tried. Asks memory only; may be stale."""
        ...

    def read(self, key: bytes, address: int, length: int, done: Done) -> bool:
        """Read the block of ``key``, which has ``length`` bytes, to ``address``.

        Until ``done`` the memory is the store's. After ``done(False)`` it holds anything.

        Returns:
            Whether it was accepted: not where the key is unknown or too many reads wait.
        """
        ...

    def write(self, key: bytes, address: int, length: int, done: Done) -> bool:
        """Store the ``length`` bytes at ``address`` under ``key``; they may not change until done.

        Returns:
            Whether it was accepted: not where the key is stored or being stored already, where
            too many writes wait, or where a block is larger than a segment.
        """
        ...

    def forget(self, keys: Sequence[bytes]) -> None:
        """Contain these keys no more; their bytes stay on disk, and a restart may find them."""
        ...

    def clear(self) -> None:
        """Drop every block, also those being written; the files are gone soon after."""
        ...

    def stats(self) -> DiskStats:
        """Return what the tier holds and did. Cheap enough for once a second."""
        ...

    def close(self, deadline_s: float) -> None:
        """Write what waits and the index, then let go of the directories. Blocks; call once.

        Calls ``done`` of everything accepted, with False for what ``deadline_s`` left no time for.
        What a disk that hangs holds on to is left to it, and is not done: its memory may still be
        touched until the process ends.
        """
        ...

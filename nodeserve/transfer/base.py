"""How one process reads another's KV pool, whatever memory the pool lies in.

The owner of a pool describes it in a handle. A peer opens the handle and copies runs of bytes
out of that pool into its own. Nothing here knows of blocks, leases or engines.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from nodeserve.kv.layout import CopyRun

Handle = dict[str, int | str]
"""What a peer needs to open a pool: plain msgpack types; ``transport`` names who can."""


class PeerPool(Protocol):
    """A peer's pool, open for reading."""

    def copy(self, runs: Sequence[CopyRun]) -> None:
        """Copy ``runs`` out of the peer's pool into ours; all of it is here on return.

        Raises:
            PeerError: A run reaches outside one of the pools; nothing was copied.
        """
        ...

    def is_current(self) -> bool:
        """Return whether the owner still has the pool. A pool without owner can still be read."""
        ...

    def close(self) -> None:
        """Give the peer's memory back. No copy may run or begin."""
        ...


class Importer(Protocol):
    """Opens peers' pools for copies into one pool of this process."""

    def open(self, handle: Handle) -> PeerPool:
        """Open the pool that ``handle`` describes.

        Raises:
            PeerError: Its owner is gone, or the handle is of something else by now.
        """
        ...


class AddressRun(NamedTuple):
    """One contiguous copy between addresses of this process: ``length`` bytes, never overlapping.

    Where memory of a device is mapped into the process, its addresses count too.
    """

    source: int
    destination: int
    length: int


class Fence(Protocol):
    """A point in what this process has asked its device to do."""


class Pinner(Protocol):
    """Makes host memory fast to copy from and to. Any thread may call."""

    def register(self, address: int, num_bytes: int) -> None:
        """Pin memory, which may take 0.1 s a GB, and more where its pages were never written.

        Raises:
            PeerError: The device refuses; copies from and to it still work.
        """
        ...

    def unregister(self, address: int) -> None:
        """Undo ``register``, before the memory is unmapped; no copy may use it."""
        ...


class Copier(Protocol):
    """Moves bytes between a worker's pool and host memory, or a peer's pool mapped here.

    ``fence`` is called on the thread that drives the device; ``copy`` on any one other thread.
    """

    @property
    def pinner(self) -> Pinner | None:
        """What pins host memory for these copies; None where all of it is equally fast."""
        ...

    def fence(self) -> Fence | None:
        """Return a point behind all work asked for so far; None where work is done when asked."""
        ...

    def copy(self, runs: Sequence[AddressRun], after: Fence | None) -> None:
        """Copy ``runs`` once ``after`` is reached; all of it is done on return.

        Raises:
            PeerError: The device failed; what was copied is not to be trusted.
        """
        ...

    def close(self) -> None:
        """Let go of the device, and unpin. No copy may run or begin."""
        ...

"""How one process reads another's KV pool, whatever memory the pool lies in.

The owner of a pool describes it in a handle. A peer opens the handle and copies runs of bytes
out of that pool into its own. Nothing here knows of blocks, leases or engines.
"""

from collections.abc import Sequence
from typing import Protocol

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

"""The host tier's memory, held by the supervisor so that it outlives every block manager.

Each incarnation gets the same fds and finds in them what its predecessor has left. They go on
through a reload of the supervisor too, unless that gives the tier another size.
"""

import logging
import os
from dataclasses import dataclass, field
from typing import Final, Self

from nodeserve.config.node import TierSettings
from nodeserve.transfer.arenas import HUGE_PAGE_BYTES, create_arenas, memory_nodes

MAX_ARENAS: Final = 64
"""Each is an fd, which travel through one message; the kernel takes 253 (SCM_MAX_FD)."""

USUAL_ARENA_BYTES: Final = 2 << 30
"""A device registers arena by arena, at some 0.1 s a GB."""

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeptTierMemory:
    """Travels from one release to the next: new fields have defaults.

    ``fds`` are the slot directory's, then those of the arenas. ``gone`` are the worker
    generations that the next block manager must hear of.
    """

    host_bytes: int
    arena_bytes: int
    fds: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)


class TierMemory:
    """A slot directory and arenas of equal size, all of them empty or as they were kept.

    Attributes:
        arena_bytes: The size of each arena.
        fds: The slot directory's, then the arenas'.
    """

    def __init__(self, host_bytes: int, arena_bytes: int, fds: list[int]) -> None:
        self.host_bytes = host_bytes
        self.arena_bytes = arena_bytes
        self.fds = fds

    @classmethod
    def of(cls, tiers: TierSettings | None, kept: KeptTierMemory | None) -> Self | None:
        """Return the memory that ``tiers`` ask for: what was kept of that size, else new.

        What was kept of another size is let go; it is free when nobody maps it any more.

        Raises:
            CapacityError: The kernel gives none.
        """
        if kept is not None:
            if tiers is not None and tiers.host_bytes == kept.host_bytes:
                return cls(kept.host_bytes, kept.arena_bytes, kept.fds)
            for fd in kept.fds:
                os.close(fd)
        return None if tiers is None else cls.made(tiers.host_bytes)

    @classmethod
    def made(cls, host_bytes: int) -> Self:
        """Return new memory; pages are taken as they are first written.

        Raises:
            CapacityError: The kernel gives none.
        """
        num_arenas = min(MAX_ARENAS, -(-host_bytes // USUAL_ARENA_BYTES))
        arena_bytes = max(1, host_bytes // num_arenas // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        made = create_arenas(num_arenas * arena_bytes, arena_bytes, nodes=memory_nodes())
        kind = "huge" if made.is_huge else "ordinary"
        _log.info("host_tier_made bytes=%d arenas=%d pages=%s", host_bytes, num_arenas, kind)
        return cls(host_bytes, arena_bytes, made.fds)

    @property
    def kept(self) -> KeptTierMemory:
        """What ``of`` needs; the fds in it must stay open."""
        return KeptTierMemory(self.host_bytes, self.arena_bytes, self.fds)

    def close(self) -> None:
        """Let go of it. Who has it mapped still has it."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []

"""What the two halves of the host tier say to each other; pickled between an engine's processes."""

from dataclasses import dataclass, field

from nodeserve.wire.kv_tier import KvWelcome


@dataclass(frozen=True, slots=True)
class TierLoad:
    """Copy slots that hold ``keys`` into ``blocks``; the request waits for it across steps.

    A slot has a block of each KV cache group: ``blocks`` are as many per slot, NULL_BLOCK where
    the group needs none, being behind its window.
    """

    request_id: str
    slots: list[int]
    keys: list[bytes]
    blocks: list[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class TierStore:
    """Copy ``blocks``, computed by earlier steps, into slots reserved for ``keys``.

    One block of each KV cache group per slot.
    """

    job_id: int
    slots: list[int]
    keys: list[bytes]
    blocks: list[tuple[int, ...]]


@dataclass
class TierStep:
    """Scheduler to workers, each step. ``welcome`` comes before the first slot of its tier."""

    welcome: KvWelcome | None = None
    loads: list[TierLoad] = field(default_factory=list)
    stores: list[TierStore] = field(default_factory=list)


@dataclass
class TierReport:
    """Workers to scheduler, each step: how many ranks have ended a store, and what it cost.

    ``failed`` stores are ended too. Only rank 0 counts the time. ``unpinned_bytes`` are those of
    loads and stores that a device could not copy directly: they take several times as long.
    """

    ended: dict[int, int] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    load_bytes: int = 0
    load_ms: float = 0.0
    store_bytes: int = 0
    store_ms: float = 0.0
    unpinned_bytes: int = 0

    def aggregate(self, other: "TierReport") -> "TierReport":
        """Return the report of both."""
        ended = dict(self.ended)
        for job_id, num_ranks in other.ended.items():
            ended[job_id] = ended.get(job_id, 0) + num_ranks
        return TierReport(
            ended=ended,
            failed=self.failed | other.failed,
            load_bytes=self.load_bytes + other.load_bytes,
            load_ms=self.load_ms + other.load_ms,
            store_bytes=self.store_bytes + other.store_bytes,
            store_ms=self.store_ms + other.store_ms,
            unpinned_bytes=self.unpinned_bytes + other.unpinned_bytes,
        )

"""How fast KV can be read from elsewhere: measured, once, before anything depends on it."""

import statistics
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.base import AddressRun, Copier

SCRATCH_BYTES: Final = 64 << 20
"""What is copied at a time: 8,000 tokens of a small model."""

SEGMENT_BYTES: Final = {"gbps_64kb": 64 << 10, "gbps_256kb": 256 << 10}
"""Blocks come in pieces: these are the usual ones."""

WHOLE: Final = "gbps_64mb"

LATENCY: Final = "latency_us"

_LATENCY_BYTES: Final = 4096
_LATENCY_COPIES: Final = 9
_COPIES: Final = 3
_BUDGET_S: Final = 0.05
"""A size is copied again while it has taken less than this: slow paths are slow once."""


class Readable(Protocol):
    """What is measured: a transfer.base.PeerPool, or OwnMemory."""

    def copy(self, runs: Sequence[CopyRun]) -> None:
        """Copy into scratch memory; all of it is there on return."""
        ...


class OwnMemory:
    """Memory of this process, such as an arena of the host tier, read as a peer's pool is."""

    def __init__(self, copier: Copier, address: int, into: int) -> None:
        """Copy from ``address`` to the scratch memory at ``into``, by ``copier``."""
        self._copier = copier
        self._address = address
        self._into = into

    def copy(self, runs: Sequence[CopyRun]) -> None:
        """Copy."""
        here, there = self._address, self._into
        addressed = [
            AddressRun(here + run.source, there + run.destination, run.length) for run in runs
        ]
        self._copier.copy(addressed, None)


def measure(
    pool: Readable, pool_bytes: int, scratch_bytes: int, now_s: Callable[[], float]
) -> dict[str, float]:
    """Return ``latency_us`` of one small copy and GB/s of many bytes in pieces of several sizes.

    Args:
        pool: What is read, with copies into scratch memory.
        pool_bytes: How large it is.
        scratch_bytes: How large the scratch memory is; at least 64 KiB.
        now_s: The clock.

    Raises:
        PeerError: The peer's pool cannot be read.
    """
    total = min(SCRATCH_BYTES, pool_bytes, scratch_bytes)
    pool.copy([CopyRun(0, 0, total)])  # memory that nobody has touched is slow once
    small = [CopyRun(0, 0, min(_LATENCY_BYTES, total))]
    times_s = [_timed(pool, small, now_s) for _ in range(_LATENCY_COPIES)]
    figures = {LATENCY: round(statistics.median(times_s) * 1e6, 1)}
    for name, size in {**SEGMENT_BYTES, WHOLE: total}.items():
        figures[name] = round(_gbps(pool, total, min(size, total), now_s), 3)
    return figures


def slowest(ranks: list[dict[str, float]]) -> dict[str, float]:
    """Return one rank's worth of figures: a handoff is as slow as its slowest rank."""
    worst = {name: min(rank[name] for rank in ranks) for name in ranks[0]}
    worst[LATENCY] = max(rank[LATENCY] for rank in ranks)
    return worst


def _gbps(pool: Readable, total: int, size: int, now_s: Callable[[], float]) -> float:
    count = total // size
    # Backwards, so that no two pieces make one.
    runs = [CopyRun(i * size, (count - 1 - i) * size, size) for i in range(count)]
    best_s, spent_s = float("inf"), 0.0
    for _ in range(_COPIES):
        took_s = _timed(pool, runs, now_s)
        best_s, spent_s = min(best_s, took_s), spent_s + took_s
        if spent_s > _BUDGET_S:
            break
    return count * size / max(best_s, 1e-9) / 1e9


def _timed(pool: Readable, runs: list[CopyRun], now_s: Callable[[], float]) -> float:
    begun_s = now_s()
    pool.copy(runs)
    return now_s() - begun_s

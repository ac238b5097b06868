"""What the block manager says of its tiers to people and to metrics."""

from typing import Final

from nodeserve.block_manager.tier_desk import TierDesk
from nodeserve.kv.slot_table import SlotPhase
from nodeserve.transfer.disk_store import DiskStats
from nodeserve.wire.kv_control import (
    KvEngineLoad,
    KvListenerLoad,
    KvPrefix,
    KvTierLoad,
    KvTierStatus,
)

MAX_PREFIXES: Final = 20

_CORRUPT: Final = ("length", "truncated", "header", "payload")
"""The kinds of misses that the disk tier counts for records which are not whole."""


def build_status(
    call_id: int, model: str, desk: TierDesk, disk_failure: str | None
) -> KvTierStatus:
    """Return the account of a tier whose shape is known."""
    tier, shape = desk.tier, desk.shape
    counters = tier.counters
    tiers = [_host(desk)]
    if desk.disk is not None:
        tiers.append(_disk(desk, desk.disk.stats(), disk_failure))
    elif disk_failure is not None:
        tiers.append(KvTierLoad(name="disk", failure=disk_failure))
    return KvTierStatus(
        call_id=call_id,
        state="adopting" if tier.is_adopting else "serving",
        model=model,
        namespace=desk.namespace.hex(),
        block_bytes=shape.block_bytes,
        slot_stride=shape.slot_stride,
        tiers=tuple(tiers),
        listeners=_listeners(desk),
        engines=_engines(desk),
        prefixes=_prefixes(desk),
        pinned_bytes=len(tier.pinned.held) * shape.slot_stride,
        lookups=counters.lookups,
        looked_up_keys=counters.keys,
        lookup_us_per_key=1e6 * desk.lookup_s / counters.keys if counters.keys else None,
        stale_messages=counters.stale,
    )


def _host(desk: TierDesk) -> KvTierLoad:
    tier, shape = desk.tier, desk.shape
    counters, table = tier.counters, tier.table
    books = tier.room.books.values()
    read = {s for e in tier.engines.values() for held in e.calls.values() for s in held}
    used = table.num_slots - tier.room.num_free
    quarantined = used - len(table.ready) - len(table.written)
    return KvTierLoad(
        name="host",
        capacity_bytes=table.num_slots * shape.slot_stride,
        used_bytes=used * shape.slot_stride,
        slots=table.num_slots,
        used_slots=used,
        pinned=len(read | tier.pinned.held.keys()),
        writing=len(table.written),
        quarantined=quarantined,
        hits=counters.hits,
        misses=counters.keys - counters.hits,
        stores=counters.stores,
        evictions=sum(book.evictions for book in books),
        dropped=sum(book.dropped for book in books),
        refused=counters.refused,
        promotions=counters.promotions,
        failed_promotions=counters.failed_promotions,
        read_bytes=counters.read_bytes,
        written_bytes=counters.written_bytes,
        read_s=counters.read_us / 1e6,
        written_s=counters.written_us / 1e6,
        read_gbps=_gbps(counters.read_bytes, counters.read_us / 1e6),
        written_gbps=_gbps(counters.written_bytes, counters.written_us / 1e6),
    )


def _disk(desk: TierDesk, stats: DiskStats, failure: str | None) -> KvTierLoad:
    counters = desk.tier.counters
    read_bytes = sum(one.read_bytes for one in stats.directories)
    written_bytes = sum(one.written_bytes for one in stats.directories)
    read_s = sum(one.read_busy_s for one in stats.directories)
    written_s = sum(one.write_busy_s for one in stats.directories)
    return KvTierLoad(
        name="disk",
        capacity_bytes=stats.max_bytes,
        used_bytes=stats.used_bytes,
        used_slots=stats.num_records,
        hits=counters.disk_hits,
        misses=counters.disk_misses,
        stores=stats.num_stored,
        evictions=stats.num_evicted,
        dropped=counters.disk_dropped,
        refused=sum(stats.refused.values()),
        promotions=counters.promotions,
        failed_promotions=counters.failed_promotions,
        corrupt=sum(stats.misses.get(kind, 0) for kind in _CORRUPT),
        read_bytes=read_bytes,
        written_bytes=written_bytes,
        read_s=read_s,
        written_s=written_s,
        read_gbps=_gbps(read_bytes, read_s),
        written_gbps=_gbps(written_bytes, written_s),
        failure=failure,
    )


def _gbps(num_bytes: int, seconds: float) -> float | None:
    return round(num_bytes / seconds / 1e9, 3) if num_bytes and seconds > 0 else None


def _listeners(desk: TierDesk) -> tuple[KvListenerLoad, ...]:
    stride = desk.shape.slot_stride
    return tuple(
        KvListenerLoad(
            name=book.name or f"{tenant:016x}",
            quota=book.quota,
            used_bytes=book.slots * stride,
            slots=book.slots,
            hits=book.hits,
            misses=book.misses,
            stores=book.stores,
            evictions=book.evictions,
            dropped=book.dropped,
        )
        for tenant, book in desk.tier.room.books.items()
    )


def _engines(desk: TierDesk) -> tuple[KvEngineLoad, ...]:
    return tuple(
        KvEngineLoad(
            worker=engine.worker,
            generation=engine.generation,
            lookups=len(engine.calls),
            pinned=sum(len(held) for held in engine.calls.values()),
            writing=len(engine.writing),
        )
        for engine in desk.tier.engines.values()
    )


def _prefixes(desk: TierDesk) -> tuple[KvPrefix, ...]:
    """Return what was asked for most, and what is pinned, asked for or not."""
    tier, table = desk.tier, desk.tier.table
    found = []
    top = dict(tier.prefixes.top(MAX_PREFIXES))
    for key, hits in (top | {key: top.get(key, 0) for key in tier.pinned.keys}).items():
        slot = table.ready.get(key)
        if slot is None or table.phases[slot] is not SlotPhase.READY:
            continue
        blocks = len(table.chain_to(slot))
        found.append(KvPrefix(key=key.hex(), blocks=blocks, hits=hits, pinned=key in tier.pinned))
    return tuple(found)

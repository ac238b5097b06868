"""The tiers' own account."""

import pytest

from nodeserve.block_manager.status import build_status
from nodeserve.kv.tier_events import (
    BlocksLookedUp,
    EngineGone,
    ReservationAsked,
    SlotsAbandoned,
    SlotsPublished,
)
from tests.block_manager.desks import ARENA, Bench
from tests.kv.tiers import key, keys


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.close()


async def test_it_counts_what_has_happened(bench) -> None:
    desk = bench.desk()
    desk.tell(ReservationAsked(1, 1, "chat", keys("a", "b", "c")))
    desk.tell(SlotsPublished(1, [0]))
    desk.tell(SlotsAbandoned(1, [1]))
    desk.tell(BlocksLookedUp(2, 1, "batch", keys("a", "x")))
    desk.tell(EngineGone(1))
    status = build_status(7, "m", desk, None)
    (host,) = status.tiers
    slot = ARENA // 4
    assert (host.capacity_bytes, host.used_bytes, host.used_slots) == (4 * slot, 2 * slot, 2)
    assert (host.pinned, host.writing, host.quarantined) == (1, 0, 1)
    assert (host.hits, host.misses, host.stores, host.refused) == (1, 1, 1, 1)
    chat, batch = status.listeners
    assert (chat.name, chat.slots, chat.stores) == ("chat", 2, 1)
    assert (batch.name, batch.slots, batch.hits, batch.misses) == ("batch", 0, 1, 1)
    (engine,) = status.engines
    assert (engine.worker, engine.lookups, engine.pinned, engine.writing) == ("w2", 1, 1, 0)
    (prefix,) = status.prefixes
    assert (prefix.key, prefix.blocks, prefix.hits) == (key("a").hex(), 1, 1)
    assert (status.call_id, status.state, status.model) == (7, "serving", "m")


async def test_what_an_operator_pinned_and_an_engine_reads_is_counted_once(bench) -> None:
    desk = bench.desk()
    desk.tell(ReservationAsked(1, 1, "chat", keys("a", "b")))
    desk.tell(SlotsPublished(1, [0, 1]))
    desk.tier.pinned.pin(key("b").hex())
    desk.tell(BlocksLookedUp(2, 1, "batch", keys("a")))
    assert build_status(7, "m", desk, None).tiers[0].pinned == 2


async def test_a_disk_that_did_not_open_is_shown_with_the_reason(bench) -> None:
    desk = bench.desk()
    assert build_status(1, "m", desk, "in use").tiers[1].failure == "in use"

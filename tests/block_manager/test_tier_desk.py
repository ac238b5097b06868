"""What the host tier decides, carried out."""

import asyncio
import struct

import pytest

from nodeserve.block_manager import tier_desk
from nodeserve.block_manager.disk import DiskTier
from nodeserve.kv.tier_events import BlocksLookedUp, ReservationAsked, SlotsPublished
from nodeserve.kv.tier_log import Op
from nodeserve.transfer.slot_directory import ENTRY_BYTES, HEADER_BYTES, SlotState
from nodeserve.wire.kv_tier import ABSENT, KvFound, KvReserved, join_slots
from tests.block_manager.desks import Bench
from tests.block_manager.fake_store import FakeStore
from tests.kv.tiers import key, keys


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.close()


def reserve(desk, *names, engine=1, call_id=1) -> None:
    desk.tell(ReservationAsked(engine, call_id, "l", keys(*names)))


async def test_the_directory_says_what_a_slot_holds_before_an_engine_hears_of_it(bench) -> None:
    desk = bench.desk()
    states = []

    def send(generation, answer) -> None:
        states.append(desk._directory.entry(0).state)
        bench.sent.append((generation, answer))

    desk._send = send
    reserve(desk, "a")
    desk.tell(SlotsPublished(1, [0]))
    desk.tell(BlocksLookedUp(2, 1, "l", keys("a")))
    assert states == [SlotState.RESERVED, SlotState.READY]
    assert bench.sent == [
        (1, KvReserved(call_id=1, slots=join_slots([0]))),
        (2, KvFound(call_id=1, slots=join_slots([0]))),
    ]
    assert desk._directory.entry(0).key == key("a")


async def test_slots_that_an_engine_never_hears_of_are_free_again(bench) -> None:
    desk = bench.desk()
    bench.unreachable = {1}
    reserve(desk, "a", "b")
    assert desk.tier.room.num_free == 4
    assert desk.num_undelivered == 1
    assert desk._directory.entry(0).state == SlotState.FREE


async def test_what_a_look_up_found_whose_answer_is_lost_is_not_pinned(bench) -> None:
    desk = bench.desk()
    reserve(desk, "a")
    desk.tell(SlotsPublished(1, [0]))
    bench.unreachable = {2}
    desk.tell(BlocksLookedUp(2, 1, "l", keys("a")))
    assert desk.tier.table.pins[0] == 0


async def test_a_successor_adopts_what_the_directory_says(bench) -> None:
    first = bench.desk()
    reserve(first, "a", "b", "c")
    first.tell(SlotsPublished(1, [0, 2]))
    # It dies in the middle of saying something of slot 2.
    struct.pack_into("<Q", first._directory._map, HEADER_BYTES + 2 * ENTRY_BYTES, 7)
    second = await bench.successor()
    assert [phase.name for phase in second.tier.table.phases] == [
        "READY",
        "QUARANTINED",
        "QUARANTINED",
        "FREE",
    ]
    assert second.namespace == bytes(range(32))


async def test_others_have_their_turn_while_slots_are_adopted(bench, monkeypatch) -> None:
    monkeypatch.setattr(tier_desk, "SLOTS_A_TURN", 1)
    first = bench.desk()
    reserve(first, "a", "b", "c")
    first.tell(SlotsPublished(1, [0, 1, 2]))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    second = await bench.successor()
    others.cancel()
    assert turns >= bench.shape.num_slots
    assert second.tier.table.chain_to(2) == [2, 1, 0]


async def test_a_state_that_no_program_wrote_is_quarantined(bench) -> None:
    first = bench.desk()
    reserve(first, "a")
    struct.pack_into("<Q", first._directory._map, HEADER_BYTES + 8, 99)
    second = await bench.successor()
    assert second.tier.table.phases[0].name == "QUARANTINED"


async def test_blocks_go_to_disk_and_come_back(bench) -> None:
    desk = bench.desk()
    store = FakeStore(hold=True)
    desk.disk = DiskTier(store, lambda slot: bench.memory.address(slot, bench.shape), 4096)
    desk.tier.disk_works = True
    reserve(desk, "a")
    desk.tell(SlotsPublished(1, [0]))
    assert desk.tier.clear(None, 9)[1] == 0
    store.end_all()
    await asyncio.sleep(0)
    commands, number = desk.tier.clear(None, 9)
    desk.obey(commands)
    assert number == 1
    desk.tell(BlocksLookedUp(2, 1, "l", keys("a"), deadline_s=99.0))
    assert bench.sent[-1][1].num_pending == 1
    store.end_all()
    await asyncio.sleep(0)
    assert bench.sent[-1][1] == KvFound(call_id=1, slots=join_slots([0]))


async def test_where_disk_takes_nothing_look_ups_are_answered_and_slots_stay_free(bench) -> None:
    desk = bench.desk()
    store = FakeStore(max_writes=0)
    desk.disk = DiskTier(store, lambda slot: bench.memory.address(slot, bench.shape), 4096)
    desk.tier.disk_works = True
    reserve(desk, "a")
    desk.tell(SlotsPublished(1, [0]))
    assert desk.tier.table.holds[0] == 0
    desk.disk.present = lambda missing: [key("b")]
    desk.tell(BlocksLookedUp(2, 1, "l", keys("b"), deadline_s=99.0))
    assert bench.sent[-1][1] == KvFound(call_id=1, slots=join_slots([ABSENT]))
    assert desk.tier.counters.failed_promotions == 1


async def test_a_disk_that_is_gone_is_a_miss(bench) -> None:
    desk = bench.desk()
    desk.tier.disk_works = True
    reserve(desk, "a")
    desk.tell(SlotsPublished(1, [0]))
    desk.tell(BlocksLookedUp(2, 1, "l", keys("b"), deadline_s=99.0))
    assert bench.sent[-1][1] == KvFound(call_id=1, slots=join_slots([ABSENT]))


async def test_evictions_are_logged_under_their_listener(bench) -> None:
    lines = []

    class Log:
        def add(self, *line) -> None:
            lines.append(line)

    desk = bench.desk(log=Log())
    for number in range(5):
        reserve(desk, number, call_id=number + 1)
        desk.tell(SlotsPublished(1, [number % 4]))
    desk.log(Op.LOOK_UP, "l", keys("a"))
    assert lines == [(Op.EVICT, "l", key(0)), (Op.LOOK_UP, "l", keys("a"), b"")]

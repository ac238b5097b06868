"""Blocks that come back from disk."""

import pytest

from nodeserve.errors import InvalidTransitionError, InvariantError
from nodeserve.kv.room import tenant_of
from nodeserve.kv.slot_table import SlotPhase
from nodeserve.kv.tier_events import (
    AnswerLookup,
    AskDisk,
    BlocksLookedUp,
    DiskAsked,
    EngineGone,
    ReadFromDisk,
    ReadFromDiskEnded,
    ShowSlot,
    TimeElapsed,
    WakeAt,
)
from nodeserve.wire.kv_tier import ABSENT, join_slots
from tests.kv.tiers import key, keys

L = tenant_of("l")


@pytest.fixture
def talk(talks):
    made = talks(num_slots=4)
    made.join(1, 2)
    made.tier.disk_works = True
    return made


def ask(talk, *names, on_disk, engine=1, call_id=1):
    look = BlocksLookedUp(engine, call_id, "l", keys(*names), deadline_s=5.0)
    (asked,) = talk.tell(look)
    assert isinstance(asked, AskDisk)
    return talk.tell(DiskAsked(engine, call_id, [key(name) for name in on_disk]))


def answer(slots, num_pending=0, engine=1, call_id=1):
    return AnswerLookup(engine, call_id, join_slots(slots), num_pending)


def test_what_is_missing_is_read_from_disk_and_answered_when_all_of_it_is_there(talk) -> None:
    talk.store("a")
    talk.tier._writing_to_disk.clear()
    talk.tier.table.holds[0] = 0
    look = BlocksLookedUp(1, 1, "l", keys("a", "b", "c"), deadline_s=5.0)
    assert talk.tell(look) == [AskDisk(1, 1, [key("b"), key("c")])]
    assert talk.tell(DiskAsked(1, 1, [key("b"), key("c")])) == [
        ShowSlot(1, SlotPhase.RESERVED, key("b"), L, key("a")),
        ReadFromDisk(1, key("b")),
        ShowSlot(2, SlotPhase.RESERVED, key("c"), L, key("b")),
        ReadFromDisk(2, key("c")),
        answer([0, ABSENT, ABSENT], num_pending=2),
        WakeAt(5.0),
    ]
    ready = ShowSlot(2, SlotPhase.READY, key("c"), L, key("b"))
    assert talk.tell(ReadFromDiskEnded(2, done=True)) == [ready]
    assert talk.tell(ReadFromDiskEnded(1, done=True)) == [
        ShowSlot(1, SlotPhase.READY, key("b"), L, key("a")),
        answer([0, 1, 2]),
    ]
    assert talk.tier.table.pins == [1, 1, 1, 0]
    talk.release(1)
    assert talk.tier.table.pins == [0, 0, 0, 0]
    assert (talk.tier.counters.disk_hits, talk.tier.counters.promotions) == (2, 2)


def test_a_block_that_disk_could_not_read_is_a_miss_and_its_slot_is_free(talk) -> None:
    ask(talk, "a", "b", on_disk="ab")
    talk.tell(ReadFromDiskEnded(0, done=True))
    assert talk.tell(ReadFromDiskEnded(1, done=False)) == [
        ShowSlot(1, SlotPhase.FREE, b"", 0),
        answer([0, ABSENT]),
    ]
    assert talk.tier.counters.failed_promotions == 1


def test_nothing_is_read_behind_a_block_that_is_nowhere(talk) -> None:
    commands = ask(talk, "a", "b", "c", on_disk="ac")
    assert [c.key for c in commands if isinstance(c, ReadFromDisk)] == [key("a")]
    assert talk.tier.counters.disk_misses == 1


def test_a_look_up_that_disk_cannot_help_is_answered_at_once(talk) -> None:
    assert ask(talk, "a", on_disk="") == [answer([ABSENT])]


@pytest.mark.parametrize(("deadline_s", "works"), [(5.0, False), (1.0, True), (0.0, True)])
def test_disk_is_not_asked_where_it_does_not_work_or_time_is_up(talk, deadline_s, works) -> None:
    talk.tier.disk_works = works
    talk.now_s = 1.0
    look = BlocksLookedUp(1, 1, "l", keys("a"), deadline_s=deadline_s)
    assert talk.tell(look) == [answer([ABSENT])]


def test_at_the_deadline_a_look_up_gets_what_is_there_and_the_rest_comes_for_later_ones(
    talk,
) -> None:
    ask(talk, "a", "b", on_disk="ab")
    talk.tell(ReadFromDiskEnded(0, done=True))
    talk.now_s = 5.0
    assert talk.tell(TimeElapsed()) == [answer([0, ABSENT])]
    ready = ShowSlot(1, SlotPhase.READY, key("b"), L, key("a"))
    assert talk.tell(ReadFromDiskEnded(1, done=True)) == [ready]
    assert talk.look_up("a", "b", engine=2) == [0, 1]


def test_two_look_ups_wait_for_one_read(talk) -> None:
    ask(talk, "a", on_disk="a")
    commands = ask(talk, "a", on_disk="a", engine=2)
    assert commands == [answer([ABSENT], num_pending=1, engine=2), WakeAt(5.0)]
    assert talk.tell(ReadFromDiskEnded(0, done=True))[1:] == [answer([0]), answer([0], engine=2)]
    assert talk.tier.table.pins[0] == 2


@pytest.mark.parametrize("end", ["release", "death"])
def test_who_waits_no_more_is_not_answered_and_pins_nothing(talk, end) -> None:
    ask(talk, "a", on_disk="a")
    if end == "release":
        talk.release(1)
    else:
        talk.tell(EngineGone(1))
    assert len(talk.tell(ReadFromDiskEnded(0, done=True))) == 1
    assert talk.tier.table.pins[0] == 0
    talk.now_s = 5.0
    assert talk.tell(TimeElapsed()) == []


def test_a_block_that_an_engine_is_writing_is_not_waited_for(talk) -> None:
    talk.reserve("a", engine=2)
    assert ask(talk, "a", "b", on_disk="b") == [answer([ABSENT, ABSENT])]


def test_reads_are_bounded_and_what_is_beyond_is_a_miss(talks) -> None:
    talk = talks(num_slots=4, max_disk_reads=1)
    talk.join(1)
    talk.tier.disk_works = True
    commands = ask(talk, "a", "b", on_disk="ab")
    assert commands[-2] == answer([ABSENT, ABSENT], num_pending=1)
    assert talk.tier.counters.disk_dropped == 1


def test_without_room_nothing_is_read(talk) -> None:
    talk.reserve(*range(4))
    assert ask(talk, "a", on_disk="a", call_id=9) == [answer([ABSENT], call_id=9)]


def test_what_a_look_up_found_is_not_evicted_for_what_it_reads(talks) -> None:
    talk = talks(num_slots=2)
    talk.join(1)
    talk.store("a", "x")
    talk.tier.disk_works = True
    commands = ask(talk, "a", "b", on_disk="b", call_id=9)
    assert talk.has("a", "x") == [True, False]
    assert answer([0, ABSENT], num_pending=1, call_id=9) in commands


def test_an_answer_of_disk_that_was_not_asked_is_refused(talk) -> None:
    ask(talk, "a", on_disk="a")
    with pytest.raises(InvalidTransitionError, match="look-up 1 of engine 1 has not asked"):
        talk.tell(DiskAsked(1, 1, [key("a")]))


def test_waits_that_do_not_know_of_each_other_are_found(talk) -> None:
    ask(talk, "a", on_disk="a")
    talk.tier._promotions.slots[0].clear()
    with pytest.raises(InvariantError, match="in vain"):
        talk.tier._promotions.check(talk.tier.engines)
    talk.tier._promotions.slots[0].add((1, 1))

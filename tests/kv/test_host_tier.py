"""Conversations of engines with the host tier."""

import pytest

from nodeserve.errors import InvalidTransitionError, InvariantError
from nodeserve.kv.room import tenant_of
from nodeserve.kv.slot_table import FoundSlot, SlotPhase
from nodeserve.kv.tier_events import (
    AnswerLookup,
    AnswerReservation,
    BlocksLookedUp,
    CallsReleased,
    DiskAsked,
    EngineGone,
    EngineJoined,
    ReadFromDiskEnded,
    ReservationAsked,
    ShowSlot,
    SlotsAbandoned,
    SlotsPublished,
    TimeElapsed,
    WakeAt,
    WriteToDisk,
    WriteToDiskEnded,
)
from nodeserve.wire.kv_tier import ABSENT, HELLO_CALL, join_slots
from tests.kv.tiers import key, keys, take_over

L = tenant_of("l")


def test_a_block_is_shown_reserved_then_ready_and_then_found_by_another_engine(talk) -> None:
    assert talk.tell(ReservationAsked(1, 1, "l", keys("a", "b"))) == [
        ShowSlot(0, SlotPhase.RESERVED, key("a"), L),
        ShowSlot(1, SlotPhase.RESERVED, key("b"), L, key("a")),
        AnswerReservation(1, 1, join_slots([0, 1])),
    ]
    look = BlocksLookedUp(2, 1, "l", keys("a", "b"))
    assert talk.tell(look) == [AnswerLookup(2, 1, join_slots([ABSENT, ABSENT]))]
    assert talk.tell(SlotsPublished(1, [0])) == [ShowSlot(0, SlotPhase.READY, key("a"), L)]
    look = BlocksLookedUp(2, 2, "l", keys("a", "b"))
    assert talk.tell(look) == [AnswerLookup(2, 2, join_slots([0, ABSENT]))]


def test_what_is_present_or_being_written_is_not_stored_again(talk) -> None:
    assert talk.store("a") == [0]
    assert talk.reserve("a", "b", engine=1) == [ABSENT, 1]
    assert talk.reserve("a", "b", "c", engine=2) == [ABSENT, ABSENT, 2]


def test_a_key_that_comes_twice_in_one_reservation_gets_one_slot(talk) -> None:
    assert talk.reserve("a", "a") == [0, ABSENT]


def test_what_a_look_up_found_stays_until_it_is_released(talks) -> None:
    talk = talks(num_slots=1)
    talk.join(1, 2)
    talk.store("a")
    assert talk.look_up("a", engine=2) == [0]
    assert talk.reserve("b") == [ABSENT]
    talk.tell(CallsReleased(2, [talk._call_id - 1, 12345]))
    assert talk.reserve("b") == [0]


def test_a_block_that_two_look_ups_found_is_released_by_both(talks) -> None:
    talk = talks(num_slots=1)
    talk.join(1, 2)
    talk.store("a")
    for engine in (1, 2):
        talk.tell(BlocksLookedUp(engine, 50, "l", keys("a")))
    talk.release(50, engine=1)
    assert talk.reserve("b") == [ABSENT]
    talk.release(50, engine=2)
    assert talk.reserve("b") == [0]


def test_an_abandoned_slot_is_free_at_once(talks) -> None:
    talk = talks(num_slots=1)
    talk.join(1)
    talk.reserve("a")
    assert talk.tell(SlotsAbandoned(1, [0])) == [ShowSlot(0, SlotPhase.FREE, b"", 0)]
    assert talk.reserve("b") == [0]
    assert talk.tier.counters.refused == 1


def test_nobody_publishes_or_abandons_what_is_anothers(talk) -> None:
    talk.reserve("a", engine=1)
    assert talk.tell(SlotsPublished(2, [0, 5, ABSENT])) == []
    assert talk.tell(SlotsAbandoned(2, [0])) == []
    assert talk.tier.counters.stale == 4
    assert talk.tell(SlotsPublished(1, [0, 0])) == [ShowSlot(0, SlotPhase.READY, key("a"), L)]
    assert talk.tier.counters.stale == 5


def test_an_engine_that_dies_releases_its_pins_and_its_slots_are_quarantined(talks) -> None:
    talk = talks(num_slots=2, quarantine_s=2.0)
    talk.join(1, 2)
    talk.store("a", engine=2)
    talk.look_up("a", engine=1)
    talk.reserve("b", engine=1)
    talk.now_s = 5.0
    assert talk.tell(EngineGone(1)) == [
        ShowSlot(1, SlotPhase.QUARANTINED, key("b"), L),
        WakeAt(7.0),
    ]
    assert talk.reserve("c", "d", engine=2) == [0, ABSENT]
    talk.now_s = 6.9
    assert talk.tell(TimeElapsed()) == []
    talk.now_s = 7.0
    assert talk.tell(TimeElapsed()) == [ShowSlot(1, SlotPhase.FREE, b"", 0)]
    assert talk.reserve("d", engine=2) == [1]


def test_the_block_of_a_dead_writer_can_be_stored_by_another_meanwhile(talk) -> None:
    talk.reserve("a", engine=1)
    talk.tell(EngineGone(1))
    assert talk.store("a", engine=2) == [1]
    assert talk.look_up("a", engine=2) == [1]


def test_one_engine_cannot_have_the_whole_tier_to_write(talks) -> None:
    talk = talks(num_slots=8, max_writing_share=0.5)
    talk.join(1, 2)
    assert talk.reserve(*range(6)) == [0, 1, 2, 3, ABSENT, ABSENT]
    assert talk.reserve("other", engine=2) == [4]


def test_an_engine_with_too_many_look_ups_unreleased_finds_nothing(talks) -> None:
    talk = talks(max_calls=2)
    talk.join(1)
    talk.store("a")
    assert [talk.look_up("a") for _ in range(3)] == [[0], [0], [ABSENT]]
    assert talk.tier.counters.overruns == 1
    talk.release(talk._call_id - 1)
    assert talk.look_up("a") == [0]


@pytest.mark.parametrize("call_id", [7, HELLO_CALL])
def test_a_look_up_with_a_used_number_is_refused_and_changes_nothing(talk, call_id) -> None:
    talk.store("a")
    talk.tell(BlocksLookedUp(1, 7, "l", keys("a")))
    with pytest.raises(InvalidTransitionError, match=f"used look-up {call_id} already"):
        talk.tell(BlocksLookedUp(1, call_id, "l", keys("a")))
    assert talk.tier.table.pins[0] == 1


@pytest.mark.parametrize(
    "event",
    [
        BlocksLookedUp(9, 1, "l", keys("a")),
        CallsReleased(9, [1]),
        ReservationAsked(9, 1, "l", keys("a")),
        SlotsPublished(9, [0]),
        SlotsAbandoned(9, [0]),
        DiskAsked(9, 1, []),
        DiskAsked(1, 1, []),
        ReadFromDiskEnded(0, done=True),
        WriteToDiskEnded(0),
    ],
)
def test_events_of_what_is_not_there_are_refused(talk, event) -> None:
    talk.store("a")
    with pytest.raises(InvalidTransitionError):
        talk.tell(event)
    assert talk.has("a") == [True]


def test_the_death_of_an_engine_that_never_said_hello_changes_nothing(talk) -> None:
    assert talk.tell(EngineGone(9)) == []


def test_a_second_hello_of_the_same_engine_changes_nothing(talk) -> None:
    talk.store("a")
    talk.look_up("a")
    assert talk.tell(EngineJoined(1, "w1", reading=[0], writing=[3], writing_keys=[key(3)])) == []
    assert talk.tier.table.pins[0] == 1


def test_a_published_block_is_offered_to_disk_and_not_evicted_while_disk_reads_it(talks) -> None:
    talk = talks(num_slots=2, max_disk_writes=1)
    talk.join(1)
    talk.tier.disk_works = True
    talk.reserve("a", "b")
    assert talk.tell(SlotsPublished(1, [0, 1])) == [
        ShowSlot(0, SlotPhase.READY, key("a"), L),
        WriteToDisk(0, key("a")),
        ShowSlot(1, SlotPhase.READY, key("b"), L, key("a")),
    ]
    assert talk.tier.counters.disk_dropped == 1
    assert talk.reserve("c", "d") == [1, ABSENT]
    assert talk.tell(WriteToDiskEnded(0)) == []
    assert talk.reserve("d") == [0]


def test_a_look_up_counts_for_its_listener_and_its_prefix(talk) -> None:
    talk.store("a", "b")
    talk.look_up("a", "b", "c", listener="m")
    book = talk.tier.room.book("m")[1]
    assert (book.hits, book.misses) == (2, 1)
    counters = talk.tier.counters
    assert (counters.lookups, counters.keys, counters.hits) == (1, 3, 2)
    assert talk.tier.prefixes.top(1) == [(key("b"), 1)]


def test_an_empty_look_up_finds_nothing(talk) -> None:
    assert talk.look_up() == []
    assert talk.tell(ReservationAsked(1, 99, "l", b"")) == [AnswerReservation(1, 99, b"")]


def left(*entries) -> dict:
    return {slot: FoundSlot(phase, key(name), 7) for slot, (phase, name) in enumerate(entries)}


def test_a_successor_finds_what_was_ready_and_lets_writers_go_on_with_what_they_write(
    talks,
) -> None:
    talk = talks(num_slots=3)
    slots = left(
        *zip([SlotPhase.READY, SlotPhase.RESERVED, SlotPhase.RESERVED], "abc", strict=True)
    )
    commands = take_over(talk.tier, slots, frozenset({1, 2}), now_s=0.0)
    assert [command.slot for command in commands if isinstance(command, ShowSlot)] == [1, 2]
    hello = EngineJoined(1, "w1", reading=[0, 1], writing=[1], writing_keys=[key("b")])
    assert talk.tell(hello) == [ShowSlot(1, SlotPhase.RESERVED, key("b"), 7)]
    assert talk.look_up("a", "b", "c") == [0, ABSENT, ABSENT]
    talk.release()
    assert talk.reserve("x") == [ABSENT]
    assert talk.tier.is_adopting
    assert talk.tell(EngineJoined(2, "w2")) == [WakeAt(2.0)]
    assert not talk.tier.is_adopting
    talk.tell(SlotsPublished(1, [1]))
    assert talk.look_up("b") == [1]
    talk.release()
    assert talk.tier.table.pins == [1, 0, 0]
    talk.release(HELLO_CALL)
    assert talk.tier.table.pins == [0, 0, 0]


def test_a_claim_of_what_is_no_more_there_to_claim_is_passed_over(talks) -> None:
    talk = talks(num_slots=2)
    take_over(talk.tier, left((SlotPhase.RESERVED, "a")), frozenset({1}), now_s=0.0)
    claims = [(0, "other"), (1, "b"), (77, "a")]
    slots, names = zip(*claims, strict=True)
    hello = EngineJoined(1, "w", reading=[1, 99], writing=slots, writing_keys=[*map(key, names)])
    talk.tell(hello)
    assert not talk.tier.engines[1].writing
    assert talk.tier.counters.stale == 3


def test_nothing_is_in_use_when_engines_quarantine_and_disk_are_done(talk) -> None:
    assert talk.tier.in_use
    talk.reserve("a")
    talk.tell(EngineGone(1))
    talk.tell(EngineGone(2))
    assert talk.tier.in_use
    talk.now_s = 9.0
    talk.tell(TimeElapsed())
    assert not talk.tier.in_use


@pytest.mark.parametrize("books", ["pins", "holds"])
def test_pins_and_holds_that_nobody_has_are_found(talk, books) -> None:
    talk.store("a")
    getattr(talk.tier.table, books)[0] = 2
    with pytest.raises(InvariantError, match="slot 0: counted 0 pins, 0 holds"):
        talk.tier.check()
    getattr(talk.tier.table, books)[0] = 0


def test_a_writer_that_does_not_know_what_it_writes_is_found(talk) -> None:
    talk.reserve("a")
    talk.tier.engines[1].writing.clear()
    with pytest.raises(InvariantError, match="writer None"):
        talk.tier.check()
    talk.tier.engines[1].writing.add(0)

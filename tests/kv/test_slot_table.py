"""A slot's life, and the whole product of phases and events."""

import itertools

import pytest

from nodeserve.errors import InvalidTransitionError, InvariantError
from nodeserve.kv.slot_table import (
    DISK,
    NO_SLOT,
    TRANSITIONS,
    FoundSlot,
    SlotEvent,
    SlotPhase,
    SlotTable,
)
from tests.kv.tiers import key

ACTS = {
    SlotEvent.RESERVED: lambda t: t.reserve(0, key("b"), tenant=1, writer=1, parent=NO_SLOT),
    SlotEvent.PUBLISHED: lambda t: t.publish(0),
    SlotEvent.ABANDONED: lambda t: t.abandon(0),
    SlotEvent.EVICTED: lambda t: t.evict(0),
    SlotEvent.WRITER_LOST: lambda t: t.lose_writer(0),
    SlotEvent.QUARANTINE_OVER: lambda t: t.end_quarantine(0),
    SlotEvent.CLAIMED: lambda t: t.claim(0, key("a"), writer=1),
}


def table_in(phase) -> SlotTable:
    table = SlotTable(2)
    if phase is not SlotPhase.FREE:
        table.reserve(0, key("a"), tenant=1, writer=1, parent=NO_SLOT)
    if phase is SlotPhase.READY:
        table.publish(0)
    if phase is SlotPhase.QUARANTINED:
        table.lose_writer(0)
    return table


@pytest.mark.parametrize(("phase", "event"), [*itertools.product(SlotPhase, SlotEvent)])
def test_a_slot_does_what_the_table_says_or_refuses_and_changes_nothing(phase, event) -> None:
    table = table_in(phase)
    before = vars(table_in(phase))
    after = TRANSITIONS.get((phase, event))
    if after is None:
        with pytest.raises(InvalidTransitionError, match=f"slot 0 is {phase.name}"):
            ACTS[event](table)
        assert vars(table) == before
    else:
        ACTS[event](table)
        assert table.phases[0] is after
    table.check()


@pytest.mark.parametrize("use", ["pins", "children", "holds"])
def test_a_slot_in_use_is_never_evicted(use) -> None:
    table = table_in(SlotPhase.READY)
    getattr(table, use)[0] = 1
    assert not table.is_evictable(0)
    with pytest.raises(InvariantError, match="slot 0 is evicted with"):
        table.evict(0)
    assert table.ready == {key("a"): 0}


def test_a_chain_is_followed_from_its_end_as_far_as_it_is_known() -> None:
    table = SlotTable(4)
    for slot in range(3):
        table.reserve(slot, key(slot), tenant=1, writer=1, parent=slot - 1)
        table.publish(slot)
    assert table.chain_to(2) == [2, 1, 0]
    assert table.children == [1, 1, 0, 0]
    assert table.evict(2) == 1
    assert table.evict(1) == 0
    table.check()


def test_a_block_whose_parent_was_given_up_does_not_count_for_what_comes_into_its_slot() -> None:
    table = SlotTable(3)
    table.reserve(0, key(0), tenant=1, writer=1, parent=NO_SLOT)
    table.reserve(1, key(1), tenant=1, writer=1, parent=0)
    table.abandon(0)
    table.reserve(0, key("other"), tenant=1, writer=2, parent=NO_SLOT)
    assert table.parent_of(1) == NO_SLOT
    assert table.abandon(1) == NO_SLOT
    assert table.children[0] == 0
    table.check()


def test_what_a_predecessor_left_ready_is_found_and_what_it_left_half_written_is_not() -> None:
    table = SlotTable(4)
    table.adopt(0, FoundSlot(SlotPhase.READY, key(0), 7))
    table.adopt(1, FoundSlot(SlotPhase.RESERVED, key(1), 7))
    table.adopt(2, FoundSlot(SlotPhase.QUARANTINED, key(2), 7))
    table.adopt(3, FoundSlot(SlotPhase.READY, key(0), 7))
    assert table.phases == [
        SlotPhase.READY,
        SlotPhase.QUARANTINED,
        SlotPhase.QUARANTINED,
        SlotPhase.FREE,
    ]
    assert table.ready == {key(0): 0}
    table.check()


def break_ready(table) -> None:
    table.ready[key("stray")] = 1


def break_written(table) -> None:
    table.written[key("a")] = 0


def break_writer(table) -> None:
    table.writers[0] = DISK


def break_key(table) -> None:
    table.keys[1] = key("x")


def break_pins(table) -> None:
    table.pins[1] = 1


def break_children(table) -> None:
    table.children[0] = 1


def break_count(table) -> None:
    table.ready.update({key(n): 5 for n in range(3)})


@pytest.mark.parametrize(
    "damage", [break_written, break_writer, break_key, break_pins, break_children, break_count]
)
def test_books_that_do_not_agree_are_found(damage) -> None:
    table = table_in(SlotPhase.READY)
    damage(table)
    with pytest.raises(InvariantError):
        table.check()

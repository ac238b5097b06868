"""What a predecessor left is linked again."""

import itertools

import pytest

from nodeserve.kv.adoption import PARENT_BYTES
from nodeserve.kv.slot_table import NO_SLOT, FoundSlot, SlotPhase
from nodeserve.kv.tier_events import DropBlock, EngineJoined, ShowSlot, SlotsPublished, TimeElapsed
from tests.kv.tiers import key, take_over


def found(name, parent=None, phase=SlotPhase.READY):
    return FoundSlot(phase, key(name), 7, b"" if parent is None else key(parent)[:PARENT_BYTES])


CHAIN = [found("a"), found("b", "a"), found("c", "b")]


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_the_last_block_goes_first_whatever_the_order_of_slots(talks, order) -> None:
    talk = talks(num_slots=3)
    take_over(talk.tier, {slot: CHAIN[place] for slot, place in enumerate(order)}, frozenset())
    dropped = [c.key for c in talk.tier.clear(None, 3)[0] if isinstance(c, DropBlock)]
    assert dropped == [key("c"), key("b"), key("a")]


def test_a_prefix_is_pinned_whole_again(talks) -> None:
    talk = talks(num_slots=8)
    take_over(talk.tier, dict(enumerate(CHAIN)), frozenset(), [key("c")])
    assert talk.tier.clear(None, 9)[1] == 0
    assert len(talk.tier.pinned.unpin(key("c").hex())) == 3
    assert talk.tier.clear(None, 9)[1] == 3


def test_a_block_before_that_is_not_there_is_no_link(talks) -> None:
    talk = talks(num_slots=3)
    take_over(talk.tier, {0: found("b", "a"), 2: found("x")}, frozenset())
    assert talk.tier.table.parent_of(0) == NO_SLOT
    assert talk.tier.clear(None, 9)[1] == 2


def test_what_its_writer_goes_on_with_keeps_its_links(talks) -> None:
    talk = talks(num_slots=3)
    reserved = SlotPhase.RESERVED
    left = {0: found("a", phase=reserved), 1: found("b", "a", reserved), 2: found("c", "b")}
    take_over(talk.tier, left, frozenset({1}))
    talk.tell(EngineJoined(1, "w", (), [0, 1], [key("a"), key("b")]))
    talk.tell(SlotsPublished(1, [0, 1]))
    assert talk.tier.table.chain_to(2) == [2, 1, 0]
    talk.tier.check()


def test_a_successor_that_dies_as_well_has_forgotten_no_link(talks) -> None:
    talk = talks(num_slots=2)
    left = {0: found("b", "a", SlotPhase.RESERVED), 1: found("a")}
    (shown,) = [c for c in take_over(talk.tier, left, frozenset()) if isinstance(c, ShowSlot)]
    assert (shown.phase, shown.parent) == (SlotPhase.QUARANTINED, left[0].parent)


def test_what_nobody_goes_on_with_frees_the_block_before_it(talks) -> None:
    talk = talks(num_slots=3)
    left = {0: found("a"), 1: found("b", "a", SlotPhase.RESERVED), 2: found("c", "b")}
    take_over(talk.tier, left, frozenset())
    assert talk.tier.clear(None, 9)[1] == 1
    talk.now_s = 9.0
    talk.tell(TimeElapsed())
    assert talk.tier.clear(None, 9)[1] == 1
    assert talk.tier.room.num_free == 3


def test_a_block_that_was_stored_anew_beside_a_lost_one_is_the_one_that_others_follow(talks):
    talk = talks(num_slots=4)
    lost = found("a", phase=SlotPhase.QUARANTINED)
    take_over(talk.tier, {0: lost, 1: found("b", "a"), 2: found("a")}, frozenset())
    assert talk.tier.table.parent_of(1) == 2

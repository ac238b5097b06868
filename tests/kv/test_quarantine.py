"""What nobody may use yet, and a new block manager's patience."""

import pytest

from nodeserve.errors import InvariantError
from nodeserve.kv.slot_table import FoundSlot, SlotPhase
from nodeserve.kv.tier_events import EngineGone, EngineJoined, ShowSlot, TimeElapsed, WakeAt
from nodeserve.wire.kv_tier import ABSENT
from tests.kv.tiers import key, take_over

LEFT = {0: FoundSlot(SlotPhase.READY, key("a"), 7), 1: FoundSlot(SlotPhase.RESERVED, key("b"), 7)}
FREED = ShowSlot(1, SlotPhase.FREE, b"", 0)


def test_without_the_names_of_engines_all_of_the_grace_is_waited(talks) -> None:
    talk = talks(num_slots=2, adopt_grace_s=10.0, quarantine_s=2.0)
    *_, wake = take_over(talk.tier, LEFT, now_s=0.0)
    assert wake == WakeAt(10.0)
    talk.join(1)
    talk.now_s = 9.0
    assert talk.tell(TimeElapsed()) == []
    assert talk.reserve("x") == [ABSENT]
    talk.now_s = 10.0
    assert talk.tell(TimeElapsed()) == [WakeAt(12.0)]
    assert talk.reserve("x") == [0]
    talk.now_s = 12.0
    assert talk.tell(TimeElapsed()) == [FREED]


def test_a_predecessor_without_engines_is_not_waited_for(talks) -> None:
    talk = talks(num_slots=2)
    *_, wake = take_over(talk.tier, LEFT, frozenset(), now_s=5.0)
    assert wake == WakeAt(7.0)
    assert not talk.tier.is_adopting


def test_an_engine_that_is_dead_is_not_waited_for(talks) -> None:
    talk = talks(num_slots=2)
    take_over(talk.tier, LEFT, frozenset({1, 2}), now_s=0.0)
    talk.join(1)
    talk.now_s = 1.0
    assert talk.tell(EngineGone(2)) == [WakeAt(3.0)]
    assert not talk.tier.is_adopting


def test_free_slots_are_used_while_engines_are_waited_for(talks) -> None:
    talk = talks(num_slots=3)
    take_over(talk.tier, LEFT, frozenset({2}), now_s=0.0)
    talk.join(1)
    assert talk.reserve("x", "y") == [2, ABSENT]


def test_the_quarantine_of_a_slot_that_was_claimed_and_lost_again_begins_anew(talks) -> None:
    talk = talks(num_slots=2, quarantine_s=2.0)
    take_over(talk.tier, LEFT, frozenset({1}), now_s=0.0)
    talk.tell(EngineJoined(1, "w", writing=[1], writing_keys=[key("b")]))
    talk.now_s = 1.5
    assert talk.tell(EngineGone(1))[-1] == WakeAt(3.5)
    talk.now_s = 2.5
    assert talk.tell(TimeElapsed()) == []
    talk.now_s = 3.5
    assert talk.tell(TimeElapsed()) == [FREED]


def test_a_block_stored_anew_is_not_claimed_by_its_first_writer(talks) -> None:
    talk = talks(num_slots=3)
    take_over(talk.tier, LEFT, frozenset({1}), now_s=0.0)
    talk.join(2)
    assert talk.store("b", engine=2) == [2]
    talk.tell(EngineJoined(1, "w", writing=[1], writing_keys=[key("b")]))
    assert talk.tier.table.phases[1] is SlotPhase.QUARANTINED


def test_a_quarantined_slot_that_is_not_waited_for_is_found(talk) -> None:
    talk.tier._quarantine._ends_s[3] = 1.0
    with pytest.raises(InvariantError, match="QUARANTINED"):
        talk.tier._quarantine.check()
    talk.tier._quarantine._ends_s.clear()

"""Whose blocks go when another needs room."""

import pytest

from nodeserve.errors import InvariantError
from nodeserve.kv import room as rooms
from nodeserve.kv.room import OTHERS, tenant_of
from nodeserve.kv.tier_events import DropBlock, ReservationAsked
from nodeserve.wire.kv_tier import ABSENT
from tests.kv.tiers import key, keys


def test_the_tail_of_a_request_goes_before_its_head(talk) -> None:
    talk.store("a", "b", "c", "d")
    talk.store(*range(6))
    assert talk.has("a", "b", "c", "d") == [True, True, False, False]


def test_a_block_never_goes_before_one_that_follows_it_however_old_it_is(talk) -> None:
    talk.store("head")
    talk.store("x")
    talk.store("tail", parent="head")
    talk.store(*range(6))
    assert talk.has("head", "tail", "x") == [True, True, False]


def test_what_was_looked_up_is_kept_over_what_was_not(talk) -> None:
    talk.store("a")
    talk.store("b")
    talk.look_up("a")
    talk.release()
    talk.store(*range(7))
    assert talk.has("a", "b") == [True, False]


def test_a_request_does_not_evict_its_own_beginning(talks) -> None:
    talk = talks(num_slots=2)
    talk.join(1)
    talk.store("a")
    talk.store("x")
    assert talk.reserve("b", "c", parent="a") == [1, ABSENT]
    assert talk.has("a", "x") == [True, False]


def test_a_request_larger_than_the_tier_keeps_its_beginning(talks) -> None:
    talk = talks(num_slots=3)
    talk.join(1)
    assert talk.store(*range(5)) == [0, 1, 2, ABSENT, ABSENT]
    assert talk.tier.room.book("l")[1].dropped == 2


def test_a_listener_over_its_share_evicts_its_own(talks) -> None:
    talk = talks(quotas={"small": 0.25})
    talk.join(1)
    talk.store("big", listener="big")
    talk.store("s0", listener="small")
    talk.store("s1", listener="small")
    talk.store("s2", listener="small")
    assert talk.has("big", "s0", "s1", "s2") == [True, False, True, True]
    assert talk.tier.room.num_free == 5


def test_a_listener_without_a_share_of_its_own_may_fill_the_tier_and_evict_all_others(
    talks,
) -> None:
    talk = talks(quotas={"small": 0.25})
    talk.join(1)
    talk.store("s0", listener="small")
    talk.store(*range(4), listener="big")
    talk.store(*range(4, 8), listener="big")
    assert talk.has("s0") == [False]
    assert talk.tier.room.book("big")[1].slots == 8


def test_a_share_of_less_than_a_slot_is_one_slot(talks) -> None:
    talk = talks(quotas={"tiny": 0.01})
    talk.join(1)
    assert talk.store("a", "b", listener="tiny") == [0, ABSENT]


def test_a_key_that_two_listeners_use_is_booked_on_the_one_that_stored_it(talk) -> None:
    talk.store("a", listener="first")
    assert talk.reserve("a", listener="second") == [ABSENT]
    assert talk.look_up("a", listener="second") == [0]
    assert talk.tier.room.book("first")[1].slots == 1
    assert talk.tier.room.book("second")[1].slots == 0
    assert talk.tier.room.book("second")[1].hits == 1


def test_the_coldest_block_of_all_listeners_goes_first(talk) -> None:
    talk.store("old", listener="x")
    talk.store("new", listener="y")
    talk.store(*range(4), listener="x")
    talk.store(4, 5, 6, listener="y")
    assert talk.has("old", "new") == [False, True]


def test_an_eviction_is_shown_before_the_slot_is_given_away(talks) -> None:
    talk = talks(num_slots=1)
    talk.join(1)
    talk.store("a")
    dropped, shown, _ = talk.tell(ReservationAsked(1, 9, "l", keys("b")))
    assert dropped == DropBlock(0, key("a"), tenant_of("l"))
    assert (shown.slot, shown.key) == (0, key("b"))


def test_more_listeners_than_are_counted_apart_are_counted_together(talk, monkeypatch) -> None:
    monkeypatch.setattr(rooms, "MAX_TENANTS", 1)
    talk.store("a", listener="x")
    talk.store("b", listener="y")
    talk.store("c", listener="z")
    assert talk.tier.room.book(OTHERS)[1].slots == 2


def test_a_listener_has_one_number_for_ever() -> None:
    assert tenant_of("chat") == 3221391009418557940
    assert tenant_of("chat") != tenant_of("batch")


def test_clearing_takes_as_many_as_it_is_told_and_says_when_none_is_left(talk) -> None:
    talk.store("a", "b", "c", listener="x")
    talk.store("d", listener="y")
    assert talk.tier.clear("x", 2)[1] == 2
    assert talk.has("a", "b", "c", "d") == [True, False, False, True]
    assert talk.tier.clear("x", 2)[1] == 1
    assert talk.tier.clear(None, 9)[1] == 1


def test_a_slot_that_is_booked_on_nobody_is_found(talk) -> None:
    talk.store("a")
    talk.tier.room.book("l")[1].slots -= 1
    with pytest.raises(InvariantError, match="is booked 0 slots, has 1"):
        talk.tier.room.check()
    talk.tier.room.book("l")[1].slots += 1

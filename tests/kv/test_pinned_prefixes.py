"""What the operator keeps in the host tier."""

import pytest

from nodeserve.errors import CapacityError, InvariantError, RequestError
from nodeserve.kv.tier_events import EngineGone, SlotsPublished, TimeElapsed
from tests.kv.tiers import key


def test_a_pinned_prefix_outlives_everything_that_wants_its_room(talk) -> None:
    talk.store("a", "b")
    talk.tier.pinned.pin(key("b").hex()[:12])
    assert key("b") in talk.tier.pinned
    talk.store(*range(8))
    assert talk.has("a", "b") == [True, True]
    assert talk.tier.clear(None, 100)[1] == 6
    assert talk.has("a", "b") == [True, True]


def test_an_unpinned_prefix_is_evicted_like_any_other(talk) -> None:
    talk.store("a", "b")
    talk.tier.pinned.pin(key("b").hex())
    talk.tier.pinned.pin(key("b").hex())
    assert len(talk.tier.pinned.unpin(key("b").hex()[:9])) == 2
    talk.store(*range(8))
    assert talk.has("a", "b") == [False, False]


def test_prefixes_that_share_blocks_hold_them_once_each(talk) -> None:
    talk.store("a", "b")
    talk.store("c", parent="a")
    talk.tier.pinned.pin(key("b").hex())
    talk.tier.pinned.pin(key("c").hex())
    talk.tier.pinned.unpin(key("b").hex())
    talk.tier.clear(None, 100)
    assert talk.has("a", "b", "c") == [True, False, True]
    assert talk.tier.pinned.unpin_all() == 1
    talk.tier.clear(None, 100)
    assert talk.has("a", "c") == [False, False]


def test_no_more_than_the_operators_share_is_pinned(talk) -> None:
    talk.store(*range(5))
    with pytest.raises(CapacityError, match="5 blocks in 1 prefixes would be pinned, at most 4"):
        talk.tier.pinned.pin(key(4).hex())
    assert not talk.tier.pinned.held


@pytest.mark.parametrize(
    ("digits", "text"),
    [("zz", "not hexadecimal"), ("", "2 of 2 blocks .* give more"), ("00" * 32, "0 of 2 blocks")],
)
def test_digits_that_name_no_one_block_are_refused(talk, digits, text) -> None:
    talk.store("a", "b")
    with pytest.raises(RequestError, match=text):
        talk.tier.pinned.pin(digits)


def test_an_odd_number_of_digits_will_do(talk) -> None:
    talk.store("a")
    assert talk.tier.pinned.pin(key("a").hex()[:7].upper()) == [0]


def test_holds_that_no_prefix_has_are_found(talk) -> None:
    talk.tier.pinned.held[3] = 1
    with pytest.raises(InvariantError, match="1 slots are held"):
        talk.tier.pinned.check()
    talk.tier.pinned.held.clear()


def test_what_was_pinned_is_pinned_again_as_far_as_it_is_there_and_fits(talk) -> None:
    talk.store("a", "b")
    talk.store("x")
    talk.tier.pinned.restore([key("b"), key("gone"), key("b")])
    assert talk.tier.pinned.keys == [key("b")]
    assert sorted(talk.tier.pinned.held) == [0, 1]
    talk.store("c", "d", "e", parent="x")
    talk.tier.pinned.restore([key("e")])
    assert talk.tier.pinned.keys == [key("b")]  # six of eight blocks would be more than half
    talk.tier.check()


def test_a_block_before_it_that_its_writer_lost_is_not_held(talk) -> None:
    """Its key may be READY in another slot, and the lost one is free a little later."""
    slots = talk.reserve("a", "b")
    talk.tell(SlotsPublished(1, [slots[1]]))
    talk.tell(EngineGone(1))
    talk.store("a", engine=2)
    assert talk.tier.pinned.pin(key("b").hex()) == [slots[1]]
    talk.now_s = 9.0
    talk.tell(TimeElapsed())
    talk.tier.check()

"""What the operator keeps in the host tier."""

import pytest

from nodeserve.errors import CapacityError, InvariantError, RequestError
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

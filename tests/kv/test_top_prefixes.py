"""The prefixes that are asked for most, in bounded memory."""

from nodeserve.kv.top_prefixes import TopPrefixes
from tests.kv.tiers import key


def test_prefixes_come_in_the_order_of_their_hits() -> None:
    prefixes = TopPrefixes()
    for name in "abacab":
        prefixes.found(key(name))
    assert prefixes.top(2) == [(key("a"), 3), (key("b"), 2)]


def test_at_the_bound_a_newcomer_takes_the_place_of_the_least_and_goes_on_from_its_count() -> None:
    prefixes = TopPrefixes(most=2)
    for name in "aaab":
        prefixes.found(key(name))
    prefixes.found(key("c"))
    assert prefixes.top(9) == [(key("a"), 3), (key("c"), 2)]


def test_what_is_asked_for_often_is_never_missing() -> None:
    prefixes = TopPrefixes(most=8)
    for number in range(400):
        prefixes.found(key(number))
        prefixes.found(key("often"))
    assert prefixes.top(1)[0][0] == key("often")
    assert prefixes.top(1)[0][1] >= 400

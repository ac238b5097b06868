"""Claims about legs that engines run for a dispatcher that is no more."""

from nodeserve.dispatcher.orphans import MAX_REMEMBERED, Orphans, request_id


def test_ids_of_two_dispatchers_never_meet() -> None:
    assert request_id(7, 12) == "d7-12"
    assert {request_id(1, 11), request_id(11, 1), request_id(1, 1)} == {"d1-11", "d11-1", "d1-1"}


def test_own_legs_are_no_orphans() -> None:
    orphans = Orphans(7)
    assert orphans.take(1, ["d7-12.1", "d71-2.1", "d6-12.1"]) == ["d71-2.1", "d6-12.1"]


def test_each_orphan_is_found_once_on_each_engine() -> None:
    orphans = Orphans(7)
    assert orphans.take(1, ["d6-1.1", "d6-1.1"]) == ["d6-1.1"]
    assert orphans.take(1, ["d6-1.1", "d6-2.1"]) == ["d6-2.1"]
    assert orphans.take(2, ["d6-1.1"]) == ["d6-1.1"]


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    orphans = Orphans(7)
    legs = [f"d6-{number}.1" for number in range(MAX_REMEMBERED + 1)]
    assert orphans.take(1, legs) == legs
    assert orphans.take(1, legs[1:]) == []
    assert orphans.take(1, legs[:1]) == legs[:1]

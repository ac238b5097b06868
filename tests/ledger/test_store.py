"""One booking is on disk as a whole, or not at all."""

import pytest

from nodeserve.errors import CapacityError
from nodeserve.ledger.retention import Retention
from nodeserve.ledger.store import Booking
from tests.energy.shapes import UNIX_S
from tests.ledger.books import ended, started


def test_a_booking_that_fails_leaves_nothing_and_can_be_tried_again(books):
    books.book(opened=[books.opened()])
    window = books.settled({"d9-1.1": 300})
    notes = (books.noted(started=[started(1)]),)
    (pages,) = books.store._db.execute("PRAGMA page_count").fetchone()
    books.store._db.execute(f"PRAGMA max_page_count = {pages}")
    many = tuple(
        books.noted(ended=[ended(n, wire_id="w" * 500) for n in range(100)]) for _ in range(4)
    )
    booking = Booking(round=books.round([window]), notes=notes + many, seqs={3: 7})
    with pytest.raises(CapacityError, match="full"):
        books.store.book(booking)
    assert books.rows("SELECT count(*) FROM window") == [(0,)]
    assert books.rows("SELECT count(*) FROM request") == [(0,)]
    assert books.store.seqs() == {}
    books.store._db.execute("PRAGMA max_page_count = 1000000")
    books.store.book(booking)
    assert books.rows("SELECT count(*) FROM window") == [(1,)]
    assert books.store.seqs() == {3: 7}
    assert books.problems() == ()


def test_what_is_booked_of_each_generation_is_of_its_run_and_never_falls(books):
    books.book(seqs={3: 7, 9: 2})
    books.book(seqs={3: 5})
    assert books.store.seqs() == {3: 7, 9: 2}
    books.store.close()
    books.open(run_id="run-2")
    assert books.store.seqs() == {}


def test_what_a_listener_used_is_by_hour_and_counts_what_was_dropped(books):
    books.book(opened=[books.opened()])
    books.book(books.settled({"d9-1.1": 300, "d9-2.1": 5}))
    books.book(notes=[books.noted(ended=[ended(1), ended(2, listener="b")])])
    hour = int(UNIX_S // 3600)
    for _ in range(2):
        assert books.store.used_by_hour("chat", hour) == {hour: 300}
        assert books.store.used_by_hour("chat", hour + 1) == {}
        assert books.store.used_by_hour("nobody", 0) == {}
        books.store.keep(Retention(window_days=1, request_days=1), now_unix_s=UNIX_S + 1e6)
    assert books.rows("SELECT count(*) FROM request") == [(0,)]


def test_an_empty_booking_says_so():
    assert Booking().is_empty
    assert not Booking(seqs={1: 1}).is_empty

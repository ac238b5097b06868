"""Meters, windows and their chain."""

import pytest

from nodeserve.errors import InvariantError


def test_a_window_moves_its_meter_on_and_chains(books):
    books.book(opened=[books.opened()])
    books.book(books.settled({"d9-1.1": 300}, idle_mj=200))
    books.book(books.settled({}, idle_mj=70))
    assert books.rows("SELECT counter_mj, epoch, windows FROM meter") == [(1570, 1, 2)]
    digests = [digest for (digest,) in books.rows("SELECT digest FROM window ORDER BY number")]
    assert books.rows("SELECT head FROM meter") == [(digests[-1],)]
    assert books.rows("SELECT first_mj, last_mj, metered_mj FROM epoch") == [(1000, 1570, 570)]
    assert books.problems() == ()


def test_a_reset_begins_an_epoch(books):
    books.book(opened=[books.opened()])
    books.book(
        books.settled({}, quarantine_mj=400, cause="#reset", epoch=2, counter_mj=400, wrapped_mj=0)
    )
    books.book(books.settled({}, idle_mj=70, epoch=2))
    assert books.rows("SELECT epoch, first_mj, last_mj, metered_mj FROM epoch") == [
        (1, 1000, 1000, 0),
        (2, 0, 470, 470),
    ]
    assert books.problems() == ()


def test_a_reset_of_which_nothing_is_known_to_have_been_drawn(books):
    books.book(opened=[books.opened()])
    books.book(books.settled({}, cause="#reset", epoch=2, counter_mj=999))
    assert books.rows("SELECT first_mj, last_mj FROM epoch WHERE epoch = 2") == [(999, 999)]
    assert books.problems() == ()


def test_a_wrap_stays_in_its_epoch(books):
    books.book(opened=[books.opened(counter_mj=900)])
    books.book(books.settled({}, idle_mj=200, counter_mj=100, wrapped_mj=1000))
    assert books.rows("SELECT last_mj, wrapped_mj, metered_mj FROM epoch") == [(100, 1000, 200)]
    assert books.problems() == ()


def test_a_window_that_does_not_follow_on_is_refused_and_nothing_is_booked(books):
    books.book(opened=[books.opened()])
    window = books.settled({"d9-1.1": 300})
    books.book(window)
    with pytest.raises(InvariantError, match="does not follow"):
        books.book(window)
    assert books.rows("SELECT count(*) FROM window") == [(1,)]
    assert books.rows("SELECT sum(mj) FROM share") == [(300,)]
    assert books.problems() == ()


def test_what_is_said_of_a_meter_is_kept(books):
    books.book(opened=[books.opened()])
    assert books.rows("SELECT meter, kind, name, source FROM meter") == [
        ("GPU-0", "gpu", "H100", "nvml-counter")
    ]
    (last,) = books.store.known().values()
    assert (last.counter_mj, last.epoch, last.at_s) == (1000, 1, None)

"""What is old becomes sums, and the sums stay what they were."""

import pytest

from nodeserve.ledger.retention import Retention
from tests.energy.shapes import UNIX_S
from tests.ledger.books import ended, leg

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@pytest.fixture
def old(books):
    """Five hours of windows on two meters, and four requests."""
    books.book(opened=[books.opened(0), books.opened(1)])
    for hour in range(5):
        for second in range(3):
            begin_s = hour * HOUR_S + second
            for index in range(2):
                shares = {f"d9-{hour}.1": 10 + index, (f"d9-{hour}.1", "prefill"): 3}
                books.book(
                    books.settled(
                        shares, index=index, idle_mj=7, unattributed_mj=2, begin_s=begin_s
                    )
                )
    for number in range(4):
        legs = (leg(f"d9-{number}.1", is_scrap=number == 2),)
        books.book(
            notes=[books.noted(ended=[ended(number, ended_s=number * HOUR_S + 5, legs=legs)])]
        )
    return books


def keep_all(books, *, window_days=1.0, request_days=1.0, now_s):
    retention = Retention(window_days=window_days, request_days=request_days)
    turns = 0
    while books.store.keep(retention, now_unix_s=UNIX_S + now_s):
        turns += 1
    return turns


def everything(books):
    return books.read(
        lambda ledger: [list(ledger.energy()), list(ledger.meters()), list(ledger.tokens())]
    )


def test_nothing_is_folded_before_its_time(old):
    assert keep_all(old, now_s=DAY_S - HOUR_S) == 0
    assert old.rows("SELECT count(*) FROM window") == [(30,)]
    assert old.rows("SELECT count(*) FROM request") == [(5,)]


def test_reports_and_proof_are_the_same_after_windows_and_requests_are_folded(old):
    before = everything(old)
    assert old.problems() == ()
    keep_all(old, now_s=DAY_S + 2.5 * HOUR_S)
    assert old.rows("SELECT count(*) FROM window") == [(18,)]
    assert old.rows("SELECT count(*) FROM request") == [(2,)]
    assert (everything(old), old.problems()) == (before, ())
    keep_all(old, now_s=9 * DAY_S)
    assert old.rows("SELECT count(*) FROM window") == [(0,)]
    assert old.rows("SELECT count(*) FROM share") == [(0,)]
    assert old.rows("SELECT count(*) FROM scrap_leg") == [(0,)]
    assert (everything(old), old.problems()) == (before, ())


def test_the_chain_goes_on_after_folding(old):
    keep_all(old, now_s=9 * DAY_S)
    old.book(old.settled({"d9-9.1": 5}, index=0, begin_s=5 * HOUR_S))
    assert old.rows("SELECT number FROM window") == [(16,)]
    assert old.problems() == ()


def test_an_hour_that_comes_again_is_added_to_what_was_folded(old):
    keep_all(old, now_s=9 * DAY_S)
    before = everything(old)[1]
    old.book(old.settled({}, idle_mj=7, index=0, begin_s=10.0))  # the clock was set back
    keep_all(old, now_s=9 * DAY_S)
    after = everything(old)[1]
    assert sum(row.metered_mj for row in after) == sum(row.metered_mj for row in before) + 7
    assert old.problems() == ()


def test_requests_can_be_kept_longer_than_windows(old):
    keep_all(old, request_days=30.0, now_s=9 * DAY_S)
    assert old.rows("SELECT count(*) FROM window") == [(0,)]
    assert old.rows("SELECT count(*) FROM request") == [(5,)]
    assert old.problems() == ()

"""Whatever is changed in a ledger, verify names the row."""

import sqlite3
from contextlib import closing

import pytest

from tests.ledger.books import ended, leg


@pytest.fixture
def full(books):
    """A ledger with a row in every table of figures."""
    books.book(opened=[books.opened(0), books.opened(1)])
    for _ in range(5):
        books.book(
            books.settled({"d9-1.1": 300, "d9-2.1": 50}, idle_mj=70, unattributed_mj=9),
            books.settled({("d9-1.1", "prefill"): 200}, index=1, quarantine_mj=0),
        )
    legs = (leg("d9-1.1", role="prefill"), leg("d9-1.2", is_scrap=True))
    books.book(notes=[books.noted(ended=[ended(1, legs=legs), ended(2, listener="other")])])
    assert books.problems() == ()
    return books


def change(books, statement):
    """Change the file as a stranger would, checks and all ignored."""
    books.store.close()
    with closing(sqlite3.connect(books.path)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        assert connection.execute(statement).rowcount == 1
        connection.commit()
    books.store = books.open()


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE window SET metered_mj = metered_mj + 1 WHERE meter_id = 1 AND number = 3",
         "window 3 of meter GPU-0"),
        ("UPDATE window SET idle_mj = 71, allocated_mj = 358 WHERE meter_id = 1 AND number = 2",
         "window 2 of meter GPU-0"),
        ("UPDATE window SET end_unix_ms = end_unix_ms + 1 WHERE meter_id = 2 AND number = 5",
         "window 5 of meter GPU-1"),
        ("DELETE FROM window WHERE meter_id = 1 AND number = 3", "window 4 of meter GPU-0"),
        ("DELETE FROM window WHERE meter_id = 1 AND number = 5", "meter GPU-0"),
        ("UPDATE share SET mj = mj + 1 WHERE request_key = 2",
         "share row request_key=2 leg=1 hour=472222 meter_id=1 role=2"),
        ("UPDATE share SET is_scrap = 1 WHERE request_key = 2",
         "share row request_key=2 leg=1 hour=472222 meter_id=1 role=2"),
        ("DELETE FROM share WHERE request_key = 2",
         "hour 472222 (1699999200 s unix) of meter_id=1"),
        ("UPDATE account SET mj = mj - 1",
         "account row account=#unattributed hour=472222 meter_id=1"),
        ("UPDATE meter SET counter_mj = counter_mj + 1 WHERE meter_id = 2", "meter GPU-1"),
        ("UPDATE epoch SET last_mj = last_mj + 1 WHERE meter_id = 2", "meter GPU-1"),
        ("UPDATE epoch SET metered_mj = metered_mj + 1, wrapped_mj = 1 WHERE meter_id = 2",
         "epoch row meter_id=2 epoch=1"),
        ("UPDATE token_hour SET output_tokens = 21 WHERE role = 2 AND place_id = 3",
         "token_hour row hour=472222 place_id=3 role=2"),
        ("UPDATE request SET prompt_tokens = 99 WHERE key = 1",
         "token_hour row hour=472222 place_id=2 role=1"),
        ("DELETE FROM request WHERE key = 2", "request row key=2"),
    ],
)  # fmt: skip
def test_a_changed_row_is_named(full, statement, row):
    change(full, statement)
    problems = full.problems()
    assert row in [problem.row for problem in problems], problems


def test_the_sums_are_those_of_each_meter(full):
    first, second = full.verdict().sums
    assert (first.meter, first.windows, first.metered_mj) == ("GPU-0", 5, 5 * 429)
    assert (first.allocated_mj, first.idle_mj, first.quarantine_mj) == (5 * 359, 350, 0)
    assert (first.requests_mj, first.accounts_mj) == (5 * 350, 45)
    assert (second.metered_mj, second.requests_mj) == (1000, 1000)


def test_an_empty_ledger_adds_up(books):
    assert (books.verdict().sums, books.problems()) == ((), ())

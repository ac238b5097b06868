"""Requests: their shares, tokens, ends and scrap, however often they are told of."""

import math

import pytest

from nodeserve.ledger.book_requests import leg_of, token_rows
from tests.ledger.books import ended, leg, started


@pytest.fixture
def open_books(books):
    books.book(opened=[books.opened()])
    return books


def tokens(books):
    return [
        (row.role, row.requests, row.prompt_tokens, row.cached_tokens, row.output_tokens)
        for row in books.read(lambda ledger: list(ledger.tokens()))
    ]


def test_shares_of_a_leg_add_up_over_windows_of_an_hour(open_books):
    open_books.book(open_books.settled({"d9-1.1": 300}))
    open_books.book(open_books.settled({"d9-1.1": 200, "d9-2.1": 50}))
    assert open_books.rows("SELECT leg, mj FROM share ORDER BY request_key") == [(1, 500), (1, 50)]
    assert open_books.problems() == ()


def test_an_end_heard_twice_counts_once(open_books):
    note = open_books.noted(ended=[ended(1)])
    open_books.book(notes=[note])
    open_books.book(notes=[note, open_books.noted(ended=[ended(1, output_tokens=999)])])
    assert tokens(open_books) == [("decode", 1, 100, 40, 20)]
    assert open_books.problems() == ()


def test_a_start_heard_after_the_end_changes_nothing(open_books):
    open_books.book(notes=[open_books.noted(ended=[ended(1)])])
    open_books.book(notes=[open_books.noted(started=[started(1, listener="other")])])
    places = "SELECT listener FROM request JOIN place USING (place_id)"
    assert open_books.rows(places) == [("chat",)]


def test_prompt_tokens_are_under_the_role_that_prefilled(open_books):
    legs = (leg("d9-1.1", role="prefill"), leg("d9-1.2", role="decode"))
    open_books.book(notes=[open_books.noted(ended=[ended(1, legs=legs)])])
    assert tokens(open_books) == [("prefill", 0, 100, 40, 0), ("decode", 1, 0, 0, 20)]


def test_lost_legs_do_not_say_who_computed_what(open_books):
    legs = (
        leg("d9-1.1", role="prefill", is_scrap=True),
        leg("d9-1.2", role="prefill"),
        leg("d9-1.3", role="aggregated"),
    )
    open_books.book(notes=[open_books.noted(ended=[ended(1, legs=legs)])])
    assert {row[0] for row in tokens(open_books)} == {"prefill", "aggregated"}


def test_a_request_that_never_ran_has_no_role(open_books):
    open_books.book(notes=[open_books.noted(ended=[ended(1, legs=(), output_tokens=0)])])
    assert tokens(open_books) == [("none", 1, 100, 40, 0)]


def test_what_a_scrap_leg_used_is_scrap_also_what_is_settled_after_its_end(open_books):
    open_books.book(open_books.settled({"d9-1.1": 300, "d9-1.2": 100}))
    legs = (leg("d9-1.1", is_scrap=True), leg("d9-1.2"))
    open_books.book(notes=[open_books.noted(ended=[ended(1, legs=legs)])])
    open_books.book(open_books.settled({"d9-1.1": 30, ("d9-1.1", "prefill"): 7, "d9-1.2": 10}))
    scrap = "SELECT leg, is_scrap, sum(mj) FROM share GROUP BY 1, 2 ORDER BY 1"
    assert open_books.rows(scrap) == [(1, 1, 337), (2, 0, 110)]
    assert open_books.problems() == ()


def test_energy_without_a_request_is_somebodys_until_it_is_told_whose(open_books):
    open_books.book(open_books.settled({"d9-1.1": 300}))
    listeners = [row.listener for row in open_books.read(lambda ledger: list(ledger.energy()))]
    assert listeners == ["#unknown"]
    open_books.book(notes=[open_books.noted(started=[started(1)])])
    listeners = [row.listener for row in open_books.read(lambda ledger: list(ledger.energy()))]
    assert listeners == ["chat"]


def test_the_id_of_no_leg_is_nobodys_energy(open_books):
    open_books.book(open_books.settled({"warmup": 300, "d9-1.x": 1}, unattributed_mj=20))
    assert open_books.rows("SELECT account, mj FROM account") == [("#unattributed", 321)]
    assert open_books.rows("SELECT count(*) FROM share") == [(0,)]
    assert open_books.problems() == ()


def test_a_request_is_settled_when_all_windows_until_its_end_are(open_books):
    open_books.book(notes=[open_books.noted(ended=[ended(1, ended_s=10.0)])], until_s=9.9)
    assert open_books.rows("SELECT settled FROM request") == [(0,)]
    open_books.book(seqs={3: 1}, until_s=10.0)
    assert open_books.rows("SELECT settled FROM request") == [(1,)]


@pytest.mark.parametrize(
    "wrong", [{"ended_s": math.nan}, {"ended_s": -1e12}, {"output_tokens": -1}, {"resumed": 2**60}]
)
def test_an_end_that_makes_no_sense_is_left_out(open_books, wrong):
    open_books.book(notes=[open_books.noted(ended=[ended(1, **wrong), ended(2)])])
    assert open_books.rows("SELECT request_id FROM request") == [("d9-2",)]
    assert open_books.problems() == ()


def test_the_same_id_in_another_run_is_another_request(open_books):
    open_books.book(notes=[open_books.noted(ended=[ended(1)])])
    open_books.store.close()
    open_books.open(run_id="run-2")
    open_books.book(notes=[open_books.noted(ended=[ended(1)])])
    assert open_books.rows("SELECT count(*) FROM request") == [(2,)]
    assert open_books.problems() == ()


def test_the_number_of_a_choice_stands_apart(open_books):
    wire_ids = ["0_cmpl-x-0-0123abcd", "1_cmpl-x-0-0123abcd", "12_345"]
    notes = [ended(n, wire_id=wire_id) for n, wire_id in enumerate(wire_ids)]
    open_books.book(notes=[open_books.noted(ended=notes)])
    assert open_books.rows("SELECT wire_id, choice FROM request ORDER BY key") == [
        ("cmpl-x-0-0123abcd", 0),
        ("cmpl-x-0-0123abcd", 1),
        ("12_345", 0),
    ]


def test_legs_are_named_after_their_request():
    assert leg_of("d9-1.12") == ("d9-1", 12)
    assert leg_of("d9-1") == ("d9-1", None)
    assert leg_of(".1") == (".1", None)
    assert leg_of("d9.1." + "9" * 30)[1] is None


def test_tokens_of_one_role_are_one_row():
    assert list(token_rows(3, 3, (1, 2, 3, 4))) == [(3, 1, 1, 2, 3, 4)]
    assert list(token_rows(1, 2, (1, 2, 3, 4))) == [(1, 0, 1, 2, 0, 0), (2, 1, 0, 0, 3, 4)]

"""What may be acknowledged, whatever was lost with a predecessor."""

import pytest

from nodeserve.ledger.inbox import IN_ORDER_AFTER_S, MAX_NOTES, NotesInbox
from nodeserve.wire.accounting import RequestsNoted


def noted(seq, generation=9):
    return RequestsNoted(generation=generation, seq=seq)


def book_all(inbox, now_s):
    seqs = inbox.due(now_s=now_s)
    notes = inbox.take_all()
    inbox.booked(seqs)
    return [note.seq for note in notes], seqs


def test_messages_in_order_are_booked_and_acknowledged():
    inbox = NotesInbox({})
    assert not inbox.take(noted(1), now_s=0.0)
    assert not inbox.take(noted(2), now_s=0.0)
    assert book_all(inbox, 0.0) == ([1, 2], {9: 2})
    assert book_all(inbox, 0.1) == ([], {})


def test_what_is_booked_already_is_not_booked_again():
    inbox = NotesInbox({9: 5})
    inbox.take(noted(5), now_s=0.0)
    assert inbox.take_all() == ()
    assert inbox.last_booked(9) == 5


def test_after_a_restart_all_is_asked_for_and_nothing_acknowledged_until_it_has_come():
    inbox = NotesInbox({9: 5})
    assert inbox.take(noted(8), now_s=0.0)  # was under way; 6 and 7 went to a predecessor
    for seq in (9, 6, 7, 8, 9):
        assert not inbox.take(noted(seq), now_s=0.1)
    assert book_all(inbox, 0.2) == ([8, 9, 6, 7], {9: 9})


def test_what_has_a_gap_is_not_acknowledged_while_what_fills_it_may_still_come():
    inbox = NotesInbox({9: 5})
    for seq in (8, 9, 6):
        inbox.take(noted(seq), now_s=0.0)
    assert book_all(inbox, 0.1) == ([8, 9, 6], {9: 6})
    inbox.take(noted(8), now_s=0.2)
    assert book_all(inbox, 0.3) == ([], {})
    inbox.take(noted(7), now_s=0.4)
    assert book_all(inbox, 0.5) == ([7], {9: 9})


@pytest.mark.parametrize("seq", [5, 6])
def test_one_that_is_new_to_us_may_have_said_more_than_we_see(seq):
    inbox = NotesInbox({9: 5})
    assert inbox.take(noted(seq), now_s=0.0)


def test_a_gap_is_asked_for_and_then_taken_as_lost():
    inbox = NotesInbox({})
    inbox.take(noted(1), now_s=0.0)
    assert inbox.take(noted(4), now_s=1.0)
    assert not inbox.take(noted(4), now_s=1.1)
    assert book_all(inbox, 1.1)[1] == {9: 1}
    assert book_all(inbox, 1.0 + IN_ORDER_AFTER_S)[1] == {9: 4}
    assert not inbox.take(noted(5), now_s=9.0)


def test_beyond_its_room_it_hears_nothing_and_asks_later():
    inbox = NotesInbox({})
    for seq in range(1, MAX_NOTES + 3):
        inbox.take(noted(seq), now_s=0.0)
    assert inbox.deaf_to(now_s=0.0) == []
    assert book_all(inbox, 0.0)[1] == {9: MAX_NOTES}
    assert not inbox.take(noted(MAX_NOTES + 3), now_s=0.1)
    assert inbox.take_all() == ()
    assert inbox.deaf_to(now_s=0.2) == [9]
    for seq in range(MAX_NOTES + 1, MAX_NOTES + 4):
        inbox.take(noted(seq), now_s=0.3)
    assert book_all(inbox, 0.3)[1] == {9: MAX_NOTES + 3}


def test_what_was_not_heard_is_not_acknowledged_by_what_comes_after_it():
    inbox = NotesInbox({})
    for seq in range(1, MAX_NOTES + 3):
        inbox.take(noted(seq), now_s=0.0)
    book_all(inbox, 0.0)
    inbox.deaf_to(now_s=0.1)
    inbox.take(noted(MAX_NOTES + 3), now_s=0.2)  # was under way when all was asked for
    assert book_all(inbox, 0.3)[1] == {}


def test_every_generation_counts_for_itself():
    inbox = NotesInbox({})
    inbox.take(noted(1, 4), now_s=0.0)
    inbox.take(noted(1, 9), now_s=0.0)
    assert book_all(inbox, 0.0)[1] == {4: 1, 9: 1}
    assert inbox.generations == [4, 9]

"""Leases on KV blocks: granted, then released or expired, once."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.errors import InvalidTransitionError
from nodeserve.ids import LeaseId
from nodeserve.kv.lease import (
    ClearSlot,
    Event,
    HandoffOffered,
    LeaseBook,
    LeaseReleased,
    Phase,
    PinBlocks,
    PublishSlot,
    TimeElapsed,
    UnpinBlocks,
)


@pytest.fixture
def book():
    made = LeaseBook(ttl_s=10.0, num_slots=2)
    yield made
    made.check()


def test_a_granted_lease_is_pinned_then_shown_and_ends_in_the_opposite_order(book) -> None:
    assert book.handle(HandoffOffered((4, 5)), now_s=0.0) == [
        PinBlocks((4, 5)),
        PublishSlot(0, LeaseId(1)),
    ]
    assert book.phase(LeaseId(1)) is Phase.GRANTED
    assert book.handle(LeaseReleased(LeaseId(1)), now_s=1.0) == [ClearSlot(0), UnpinBlocks((4, 5))]
    assert book.phase(LeaseId(1)) is None
    assert (book.num_granted, book.num_expired) == (0, 0)


def test_a_lease_expires_when_its_time_is_up_and_not_before(book) -> None:
    book.handle(HandoffOffered((4,)), now_s=0.0)
    assert book.handle(TimeElapsed(), now_s=9.9) == []
    assert book.handle(TimeElapsed(), now_s=10.0) == [ClearSlot(0), UnpinBlocks((4,))]
    assert (book.num_granted, book.num_expired) == (0, 1)


@pytest.mark.parametrize("end", [LeaseReleased(LeaseId(1)), TimeElapsed()])
def test_a_late_release_of_an_ended_lease_does_nothing(book, end) -> None:
    book.handle(HandoffOffered((4,)), now_s=0.0)
    book.handle(end, now_s=20.0)
    assert book.handle(LeaseReleased(LeaseId(1)), now_s=21.0) == []


@pytest.mark.parametrize("unknown", [0, -1, 2])
def test_releasing_a_lease_that_was_never_granted_is_refused(book, unknown) -> None:
    book.handle(HandoffOffered((4,)), now_s=0.0)
    with pytest.raises(InvalidTransitionError, match="never granted"):
        book.handle(LeaseReleased(LeaseId(unknown)), now_s=0.0)
    assert book.num_granted == 1


def test_without_a_free_slot_the_oldest_lease_ends_first(book) -> None:
    book.handle(HandoffOffered((1,)), now_s=0.0)
    book.handle(HandoffOffered((2,)), now_s=0.0)
    assert book.handle(HandoffOffered((3,)), now_s=0.0) == [
        ClearSlot(0),
        UnpinBlocks((1,)),
        PinBlocks((3,)),
        PublishSlot(0, LeaseId(3)),
    ]
    assert (book.num_granted, book.num_expired) == (2, 1)


@given(st.lists(st.one_of(st.none(), st.integers(1, 12), st.floats(0, 9)), max_size=60))
def test_pins_and_unpins_balance_and_ids_are_never_reused(steps) -> None:
    book = LeaseBook(ttl_s=10.0, num_slots=3)
    now_s, balance, block = 0.0, 0, itertools.count()
    ids: list[int] = []
    for step in [*steps, 1000.0]:
        event: Event
        if step is None:
            event = HandoffOffered((next(block),))
        elif isinstance(step, int):
            if step > len(ids):
                continue
            event = LeaseReleased(LeaseId(step))
        else:
            now_s += step
            event = TimeElapsed()
        commands = book.handle(event, now_s=now_s)
        ids += [c.lease_id for c in commands if isinstance(c, PublishSlot)]
        balance += sum(isinstance(c, PinBlocks) for c in commands)
        balance -= sum(isinstance(c, UnpinBlocks) for c in commands)
        assert balance == book.num_granted
        book.check()
    assert balance == 0
    assert ids == list(range(1, len(ids) + 1))


def test_blocks_of_leases_that_hold_are_known_each_once(book) -> None:
    book.handle(HandoffOffered((4, 5)), now_s=0.0)
    book.handle(HandoffOffered((5, 6)), now_s=1.0)
    assert book.blocks() == {4, 5, 6}
    book.handle(LeaseReleased(LeaseId(1)), now_s=2.0)
    assert book.blocks() == {5, 6}

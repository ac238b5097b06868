import pytest

from nodeserve.errors import InvariantError
from nodeserve.ids import BlockHash, Generation, LeaseId, RequestId
from nodeserve.router.books import Books
from nodeserve.router.messages import (
    BlocksRemoved,
    BlocksStored,
    ReleaseLease,
    RequestArrived,
    WorkerAttached,
)
from nodeserve.router.request_flow import DecodePlaced, FirstOutputSeen, PrefillPlaced, RequestFlow
from nodeserve.wire.kinds import Role

P, D = Generation(1), Generation(2)
LEASE = LeaseId(9)
HASHES = (BlockHash(1), BlockHash(2))


@pytest.fixture
def books():
    books = Books()
    books.attach(WorkerAttached(P, Role.PREFILL, 100, 16, 8))
    books.attach(WorkerAttached(D, Role.DECODE, 100, 16, 8))
    yield books
    books.check()


@pytest.fixture
def flow():
    return RequestFlow(RequestArrived(RequestId("r"), 64, 16, HASHES))


def test_nothing_is_too_large_where_no_worker_is_known():
    assert Books().why_too_large(RequestArrived(RequestId("r"), 10**9, 16)) is None


def test_too_large_is_what_the_largest_worker_cannot_hold(books):
    books.attach(WorkerAttached(Generation(3), Role.DECODE, 30, 64, 8))
    assert books.why_too_large(RequestArrived(RequestId("r"), 30 * 64, 16)) is None
    reason = books.why_too_large(RequestArrived(RequestId("r"), 30 * 64 + 1, 16))
    assert "prompt of 1921 tokens needs 31 KV blocks" in reason
    assert "the largest worker has 30 of 64 tokens" in reason


def test_every_step_of_a_handoff_is_booked_and_nothing_stays(books, flow):
    books.start_leg(flow, PrefillPlaced(P), {P: 1})
    assert (books.views[P].reserved_blocks, books.views[P].queued_prefill_tokens) == (3, 48)
    books.keep_slot(flow.request, books.views[D], {})
    assert books.views[D].reserved_blocks == 5
    books.turn_into_lease(flow, P, LEASE)
    assert (books.views[P].reserved_blocks, books.views[P].queued_prefill_tokens) == (3, 0)
    books.give_slot_back(flow.request.request_id)
    books.start_leg(flow, DecodePlaced(D), {D: 2})
    assert (books.views[D].reserved_blocks, books.views[D].queued_prefill_tokens) == (3, 0)
    released = flow.handle(FirstOutputSeen())
    assert released == [ReleaseLease(P, LEASE)]
    books.settle(released)
    assert books.views[P].is_quiescent
    assert books.end_leg(flow) == 3
    assert books.views[D].is_quiescent


def test_a_request_without_leg_or_slot_has_nothing_to_give_back(books, flow):
    assert books.end_leg(flow) == 0
    books.give_slot_back(flow.request.request_id)


def test_all_slots_of_a_worker_are_given_back_at_once(books, flow):
    books.keep_slot(flow.request, books.views[D], {})
    assert books.give_all_slots_back(books.views[D]) == ["r"]
    assert books.views[D].is_quiescent
    assert books.slots == {}


def test_the_fleet_follows_who_comes_drains_and_goes(books):
    assert [view.generation for view in books.fleet.decode] == [D]
    books.views[D].draining = True
    books.sort_fleet()
    assert books.fleet.decode == ()
    assert books.some_drain
    assert books.close(D) is not None
    assert books.close(D) is None
    assert not books.some_drain


def test_the_prefix_cache_of_each_worker_is_followed(books, flow):
    assert books.cached(flow.request) == {}
    books.blocks_stored(BlocksStored(P, HASHES))
    books.blocks_stored(BlocksStored(D, HASHES))
    books.blocks_removed(BlocksRemoved(P, HASHES[1:]))
    assert books.cached(flow.request) == {P: 1, D: 2}
    books.blocks_removed(BlocksRemoved(D, None))
    books.close(P)
    assert books.cached(flow.request) == {}


def test_check_finds_a_leg_that_is_not_booked(books, flow):
    books.start_leg(flow, PrefillPlaced(P), {})
    leg = books.legs.pop(flow.leg_id)
    with pytest.raises(InvariantError, match="0 legs run and 1 are booked"):
        books.check()
    books.legs[flow.leg_id] = leg


def test_check_finds_a_slot_on_a_draining_worker(books, flow):
    books.keep_slot(flow.request, books.views[D], {})
    books.views[D].draining = True
    with pytest.raises(InvariantError, match="drains and still has slots"):
        books.check()
    books.views[D].draining = False

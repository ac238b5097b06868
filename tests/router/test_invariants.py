import itertools

import pytest

from nodeserve.errors import InvariantError
from nodeserve.ids import Generation, LeaseId, RequestId
from nodeserve.router.books import Books
from nodeserve.router.invariants import Waits, check_booked, check_leases, check_leg, check_waits
from nodeserve.router.messages import RequestArrived, WorkerAttached
from nodeserve.router.request_flow import AbortRequested, Phase, PrefillPlaced, RequestFlow
from nodeserve.wire.kinds import Role

P = Generation(1)
R = RequestId("r")
LEASE = LeaseId(9)
SOUND = {
    (Phase.QUEUED, Waits(in_queue=True, in_decode_line=False, has_slot=False)),
    (Phase.PREFILL, Waits(in_queue=False, in_decode_line=True, has_slot=False)),
    (Phase.PREFILL, Waits(in_queue=False, in_decode_line=False, has_slot=True)),
    (Phase.HANDOFF, Waits(in_queue=False, in_decode_line=True, has_slot=False)),
    (Phase.DECODE, Waits(in_queue=False, in_decode_line=False, has_slot=False)),
}


@pytest.fixture
def flow():
    return RequestFlow(RequestArrived(R, 64, 16))


@pytest.fixture
def books(flow):
    books = Books()
    books.attach(WorkerAttached(P, Role.PREFILL, 100, 16, 8))
    books.start_leg(flow, PrefillPlaced(P), {})
    return books


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(
    "waits", list(itertools.starmap(Waits, itertools.product([True, False], repeat=3)))
)
def test_a_request_waits_where_its_phase_says_and_nowhere_else(flow, phase, waits):
    flow.phase = phase
    if (phase, waits) in SOUND:
        check_waits(flow, waits)
    else:
        with pytest.raises(InvariantError, match=phase.value):
            check_waits(flow, waits)


def test_a_leg_that_is_not_booked_is_found(books, flow):
    check_booked(flow, books)
    books.end_leg(flow)
    with pytest.raises(InvariantError, match=r"leg r\.1"):
        check_booked(flow, books)


def test_a_lease_that_is_not_booked_is_found(books, flow):
    books.turn_into_lease(flow, P, LEASE)
    check_booked(flow, books)
    check_leases({R: flow}, books)
    books.views[P].release_lease(LEASE)
    with pytest.raises(InvariantError, match="lease 9 of 1"):
        check_booked(flow, books)


def test_a_lease_that_nobody_holds_is_found(books, flow):
    books.turn_into_lease(flow, P, LEASE)
    with pytest.raises(InvariantError, match="lease 9 of worker generation 1"):
        check_leases({}, books)


def test_a_leg_of_nobody_is_found(books, flow):
    check_leg(flow, {R: flow}, books)
    with pytest.raises(InvariantError, match=r"leg r\.1"):
        check_leg(flow, {}, books)


def test_a_remembered_prefill_is_aborted_and_its_worker_lives(books, flow):
    books.end_leg(flow)
    flow.handle(AbortRequested())
    check_leg(flow, {}, books)
    books.close(P)
    with pytest.raises(InvariantError, match="phase aborted"):
        check_leg(flow, {}, books)

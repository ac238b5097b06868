import pytest

from nodeserve.errors import InvariantError
from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.router.messages import LegKind, LoadReported, WorkerAttached
from nodeserve.router.worker_view import Lease, PlacedLeg, WorkerView
from nodeserve.wire.kinds import Role

LEG = LegId("r1.1")
R = RequestId("r1")
LEASE = LeaseId(7)


@pytest.fixture
def view():
    view = WorkerView(WorkerAttached(Generation(1), Role.PREFILL, 100, 16, 8))
    yield view
    view.check()


def test_a_placed_leg_is_booked_at_once_and_leaves_no_trace(view):
    view.place_leg(LEG, PlacedLeg(LegKind.WHOLE, 5, 70))
    assert (view.reserved_blocks, view.queued_prefill_tokens, view.num_seqs) == (5, 70, 1)
    view.finish_prefill(LEG)
    assert (view.reserved_blocks, view.queued_prefill_tokens) == (5, 0)
    assert view.end_leg(LEG).blocks == 5
    assert (view.reserved_blocks, view.queued_prefill_tokens, view.num_seqs) == (0, 0, 0)
    assert view.is_quiescent


def test_a_leg_that_ends_before_its_prefill_takes_its_tokens_along(view):
    view.place_leg(LEG, PlacedLeg(LegKind.PREFILL, 5, 70))
    view.end_leg(LEG)
    assert view.queued_prefill_tokens == 0


def test_leases_and_slots_hold_blocks_and_keep_a_worker_from_being_quiescent(view):
    view.grant_lease(LEASE, Lease(R, 5))
    view.reserve_slot(R, 3)
    assert (view.reserved_blocks, view.num_seqs, view.is_quiescent) == (8, 1, False)
    view.release_slot(R)
    assert (view.reserved_blocks, view.is_quiescent) == (5, False)
    view.release_lease(LEASE)
    assert (view.reserved_blocks, view.is_quiescent) == (0, True)


@pytest.mark.parametrize(
    ("waiting", "kv_usage", "pressed"), [(0, 1.0, False), (3, 0.5, False), (3, 0.95, True)]
)
def test_a_full_engine_whose_own_queue_waits_is_pressed(view, waiting, kv_usage, pressed):
    view.report(LoadReported(Generation(1), running=1, waiting=waiting, kv_usage=kv_usage))
    assert view.is_pressed is pressed


def test_a_snapshot_counts_legs_by_kind(view):
    for number, kind in enumerate([LegKind.PREFILL, LegKind.PREFILL, LegKind.WHOLE]):
        view.place_leg(LegId(f"r{number}.1"), PlacedLeg(kind, 1, 10))
    view.place_leg(LegId("r9.2"), PlacedLeg(LegKind.DECODE, 1, 0))
    view.report(LoadReported(Generation(1), running=2, waiting=1, kv_usage=0.25))
    snapshot = view.snapshot()
    assert (snapshot.prefill_legs, snapshot.decode_legs, snapshot.whole_legs) == (2, 1, 1)
    assert (snapshot.running, snapshot.waiting, snapshot.kv_usage) == (2, 1, 0.25)
    assert (snapshot.reserved_blocks, snapshot.queued_prefill_tokens) == (4, 30)


def test_check_finds_sums_that_are_off(view):
    view.reserved_blocks = 1
    with pytest.raises(InvariantError, match="books 1 blocks"):
        view.check()
    view.reserved_blocks = 0


def test_check_finds_a_drained_worker_that_holds_something(view):
    view.reported_drained = True
    view.grant_lease(LEASE, Lease(R, 1))
    with pytest.raises(InvariantError, match="reported drained with 0 legs, 1 leases"):
        view.check()
    view.release_lease(LEASE)

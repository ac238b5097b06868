import pytest

from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.router.admission import (
    OUTPUT_LOOKAHEAD_TOKENS,
    blocks_for,
    has_room,
    tokens_for,
)
from nodeserve.router.messages import LegKind, LoadReported, RequestArrived, WorkerAttached
from nodeserve.router.worker_view import Lease, PlacedLeg, WorkerView
from nodeserve.wire.kinds import Role

EVERY_KIND = pytest.mark.parametrize("kind", LegKind)


@pytest.fixture
def view():
    view = WorkerView(WorkerAttached(Generation(1), Role.DECODE, 100, 16, 3))
    yield view
    view.check()


def test_a_prefill_leg_needs_its_prompt_and_the_others_a_bounded_output_as_well():
    request = RequestArrived(RequestId("r"), prompt_tokens=100, max_tokens=50)
    assert tokens_for(LegKind.PREFILL, request) == 100
    assert tokens_for(LegKind.DECODE, request) == tokens_for(LegKind.WHOLE, request) == 150
    endless = RequestArrived(RequestId("r"), prompt_tokens=100, max_tokens=100_000)
    assert tokens_for(LegKind.WHOLE, endless) == 100 + OUTPUT_LOOKAHEAD_TOKENS


def test_a_partial_block_counts_and_a_cached_one_does_not(view):
    assert blocks_for(33, view, 0) == 3
    assert blocks_for(33, view, 2) == 1
    assert blocks_for(32, view, 2) == 1


@EVERY_KIND
def test_whatever_its_size_a_leg_may_run_alone(view, kind):
    assert has_room(view, kind, 1000)


@EVERY_KIND
def test_beside_others_a_leg_must_fit(view, kind):
    view.place_leg(LegId("a"), PlacedLeg(LegKind.WHOLE, 60, 0))
    assert has_room(view, kind, 40)
    assert not has_room(view, kind, 41)


@EVERY_KIND
def test_a_worker_has_so_many_sequences_and_slots_count(view, kind):
    view.place_leg(LegId("a"), PlacedLeg(LegKind.WHOLE, 1, 0))
    view.place_leg(LegId("b"), PlacedLeg(LegKind.WHOLE, 1, 0))
    assert has_room(view, kind, 1)
    view.reserve_slot(RequestId("r"), 1)
    assert not has_room(view, kind, 1)


def test_leases_take_room_but_never_hold_a_decode_leg_from_an_idle_worker(view):
    view.grant_lease(LeaseId(1), Lease(RequestId("r"), 60))
    assert not has_room(view, LegKind.PREFILL, 41)
    assert not has_room(view, LegKind.WHOLE, 41)
    assert has_room(view, LegKind.DECODE, 41)


def test_a_pressed_engine_gets_no_more_to_generate(view):
    view.place_leg(LegId("a"), PlacedLeg(LegKind.WHOLE, 1, 0))
    view.report(LoadReported(Generation(1), running=1, waiting=1, kv_usage=0.99))
    assert not has_room(view, LegKind.WHOLE, 1)
    assert not has_room(view, LegKind.DECODE, 1)
    assert has_room(view, LegKind.PREFILL, 1)
    view.end_leg(LegId("a"))
    assert has_room(view, LegKind.WHOLE, 1)

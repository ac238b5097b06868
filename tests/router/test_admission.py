import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.router.admission import (
    MAX_OVERTAKEN,
    MAX_SKIPPED,
    OUTPUT_LOOKAHEAD_TOKENS,
    WaitingLine,
    blocks_for,
    has_room,
    tokens_for,
)
from nodeserve.router.messages import LegKind, LoadReported, RequestArrived, WorkerAttached
from nodeserve.router.request_flow import RequestFlow
from nodeserve.router.worker_view import Lease, PlacedLeg, WorkerView
from nodeserve.wire.kinds import Role

EVERY_KIND = pytest.mark.parametrize("kind", LegKind)


def flow(name: str, arrival: int, priority: int = 0) -> RequestFlow:
    return RequestFlow(RequestArrived(RequestId(name), 1, 1, priority=priority), arrival)


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


def test_a_line_goes_by_priority_then_arrival():
    line = WaitingLine()
    assert line.push(flow("b", 2)) == 0
    assert line.push(flow("c", 3)) == 1
    assert line.push(flow("a", 1)) == 0
    assert line.push(flow("urgent", 4, priority=-1)) == 0
    assert line.request_ids() == ["urgent", "a", "b", "c"]


def test_a_line_starts_all_who_fit_and_keeps_the_rest_in_order():
    line = WaitingLine()
    for number in range(6):
        line.push(flow(str(number), number))
    offered = []

    def try_start(request_id, num_passed):
        offered.append((request_id, num_passed))
        return int(request_id) % 2 == 0

    line.walk(try_start)
    assert offered == [("0", 0), ("1", 0), ("2", 1), ("3", 1), ("4", 2), ("5", 2)]
    assert line.request_ids() == ["1", "3", "5"]
    assert "0" not in line
    assert "1" in line


def test_a_walk_looks_past_only_a_few_who_do_not_fit():
    line = WaitingLine()
    for number in range(20):
        line.push(flow(str(number), number))
    offered: list[str] = []

    def refuse(request_id, _):
        offered.append(request_id)
        return False

    line.walk(refuse)
    assert len(offered) == MAX_SKIPPED + 1
    assert len(line) == 20


def test_whoever_was_passed_too_often_blocks_the_line_until_it_fits():
    line = WaitingLine()
    line.push(flow("big", 0))
    room = {"small"}

    def try_start(request_id, _):
        return request_id.rstrip("0123456789") in room

    for number in range(1, MAX_OVERTAKEN + 10):
        line.push(flow(f"small{number}", number))
        line.walk(try_start)
    assert len(line) == 10
    room.add("big")
    line.walk(try_start)
    assert len(line) == 0


def test_discarding_takes_out_one_and_ignores_strangers():
    line = WaitingLine()
    line.push(flow("a", 1))
    line.push(flow("b", 2))
    line.discard(RequestId("a"))
    line.discard(RequestId("a"))
    assert line.request_ids() == ["b"]
    assert len(line) == 1


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(-1, 1)),
            st.tuples(st.just("discard"), st.integers(0, 10)),
            st.tuples(st.just("walk"), st.sets(st.integers(0, 30))),
        ),
        max_size=30,
    )
)
def test_a_line_is_always_sorted_and_loses_nobody(steps):
    line, waiting, arrivals = WaitingLine(), {}, 0
    for step, value in steps:
        if step == "push":
            arrivals += 1
            line.push(flow(str(arrivals), arrivals, priority=value))
            waiting[str(arrivals)] = (value, arrivals)
        elif step == "discard":
            line.discard(RequestId(str(value)))
            waiting.pop(str(value), None)
        else:
            started: list[str] = []

            def try_start(request_id, _, fits=value, started=started):
                if int(request_id) in fits:
                    started.append(request_id)
                    return True
                return False

            line.walk(try_start)
            for request_id in started:
                del waiting[request_id]
        assert line.request_ids() == sorted(waiting, key=waiting.__getitem__)
        assert len(line) == len(waiting)

"""The ordinary life of requests, how they wait, and what is refused."""

import pytest

from nodeserve.errors import InvariantError
from nodeserve.ids import BlockHash, LeaseId, LegId, RequestId
from nodeserve.kv.block_hash import hash_blocks
from nodeserve.router.messages import (
    BlocksRemoved,
    BlocksStored,
    FailRequest,
    LegFinished,
    LegKind,
    LegStarted,
    LoadReported,
    PrefillFinished,
    ReleaseLease,
    RequestAborted,
    RequestArrived,
    RoleChanged,
    StartLeg,
    TimeElapsed,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.router.router import RouterConfig
from nodeserve.wire.kinds import Role
from tests.router.talking import (
    BLOCK,
    D2,
    LEASE,
    LEG1,
    LEG2,
    A,
    D,
    P,
    R,
    arrived,
    attached,
    snapshot,
    zero,
)


def test_a_request_is_prefilled_handed_over_decoded_and_over(pair):
    assert pair(arrived()) == [StartLeg(R, LEG1, P, LegKind.PREFILL)]
    assert snapshot(pair, D).decode_slots == 1
    assert pair(PrefillFinished(LEG1, LEASE)) == [StartLeg(R, LEG2, D, LegKind.DECODE, LEASE)]
    assert snapshot(pair, P).leases == 1
    assert pair(LegStarted(LEG2)) == [ReleaseLease(P, LEASE)]
    assert pair.router.running_count == 1
    assert pair(LegFinished(LEG2)) == []
    assert zero(pair)


def test_a_request_that_ends_in_its_prefill_leg_is_over(pair):
    pair(arrived())
    assert pair(LegFinished(LEG1)) == []
    assert zero(pair)


def test_an_aggregated_worker_takes_requests_whole(talk):
    talk(attached(A, Role.AGGREGATED))
    assert talk(arrived()) == [StartLeg(R, LEG1, A, LegKind.WHOLE)]
    assert snapshot(talk, A).queued_prefill_tokens == 10 * BLOCK
    assert talk(LegStarted(LEG1)) == []
    assert snapshot(talk, A).queued_prefill_tokens == 0
    assert talk(LegFinished(LEG1)) == []
    assert zero(talk)


def test_short_prompts_skip_the_hop(talk_with):
    talk = talk_with(RouterConfig(local_prefill_tokens=10 * BLOCK))
    talk(attached(P, Role.PREFILL))
    talk(attached(D, Role.DECODE))
    assert talk(arrived()) == [StartLeg(R, LEG1, D, LegKind.WHOLE)]
    (long,) = talk(arrived("r2", blocks=11))
    assert long.kind is LegKind.PREFILL


def test_a_prompt_goes_where_its_prefix_is_cached_until_it_is_dropped(talk):
    for generation in (P, D, D2):
        talk(attached(generation, Role.AGGREGATED))
    hashes = hash_blocks(range(64), BLOCK)
    talk(BlocksStored(D2, hashes))
    placed = []
    for number, event in enumerate(
        [TimeElapsed(), BlocksRemoved(D2, hashes[:1]), BlocksStored(D2, hashes)]
    ):
        talk(event)
        request_id = RequestId(f"r{number}")
        (start,) = talk(RequestArrived(request_id, 64, 16, hashes))
        placed.append(start.generation)
        talk(LegFinished(start.leg_id))
    assert placed == [D2, P, D2]
    talk(BlocksRemoved(D2, None))
    assert talk(RequestArrived(R, 64, 16, hashes))[0].generation == P


def test_requests_wait_for_the_first_worker(talk):
    assert talk(arrived()) == []
    assert talk(attached(A, Role.AGGREGATED)) == [StartLeg(R, LEG1, A, LegKind.WHOLE)]


def test_a_full_queue_refuses_with_the_numbers(talk_with):
    talk = talk_with(RouterConfig(max_queued_requests=2))
    assert talk(arrived("a")) == talk(arrived("b")) == []
    (refused,) = talk(arrived())
    assert refused == FailRequest(
        R,
        "request r1 was not taken: 2 requests wait already, no more may; try again later or raise"
        " max_queued_requests",
    )
    assert talk.router.queued_count == 2


def test_a_queue_of_none_still_takes_what_starts_at_once(talk_with):
    talk = talk_with(RouterConfig(max_queued_requests=0))
    talk(attached(A, Role.AGGREGATED, num_blocks=12))
    assert talk(arrived()) == [StartLeg(R, LEG1, A, LegKind.WHOLE)]
    (refused,) = talk(arrived("r2"))
    assert isinstance(refused, FailRequest)


def test_freed_room_goes_to_the_urgent_then_to_the_oldest(talk):
    talk(attached(A, Role.AGGREGATED, num_blocks=12))
    talk(arrived("r0"))
    for name, priority in (("late", 0), ("later", 0), ("urgent", -1)):
        assert talk(arrived(name, priority=priority)) == []
    order = []
    leg = LegId("r0.1")
    while starts := talk(LegFinished(leg)):
        (start,) = starts
        order.append(start.request_id)
        leg = start.leg_id
    assert order == ["urgent", "late", "later"]


def test_a_request_that_does_not_fit_is_passed_by_one_that_does(talk):
    talk(attached(A, Role.AGGREGATED, num_blocks=20))
    talk(arrived("r0"))
    assert talk(arrived("big", blocks=15)) == []
    (start,) = talk(arrived("small", blocks=3))
    assert start.request_id == "small"


def test_prefills_run_a_little_ahead_of_a_full_decode_worker(talk):
    talk(attached(P, Role.PREFILL))
    talk(attached(D, Role.DECODE, num_blocks=12))
    started = [talk(arrived(f"x{number}")) for number in range(8)]
    assert [len(commands) for commands in started] == [1, 1, 1, 1, 1, 0, 0, 0]
    assert snapshot(talk, D).decode_slots == 1
    assert talk.router.queued_count == 3


def test_prefills_that_run_ahead_do_not_pass_a_request_that_needs_the_decode_worker(talk):
    talk(attached(P, Role.PREFILL))
    talk(attached(D, Role.DECODE, num_blocks=12))
    talk(arrived("x0"))
    assert talk(RequestArrived(RequestId("whole"), 160, 16, whole=True)) == []
    assert talk(arrived("x1")) == []
    talk(RequestAborted(RequestId("whole")))
    assert snapshot(talk, P).prefill_legs == 2


def test_room_for_decoding_is_kept_for_those_who_prefilled_ahead(talk):
    talk(attached(P, Role.PREFILL))
    talk(attached(D, Role.DECODE, num_blocks=20))
    talk(arrived("x0"))
    (ahead,) = talk(arrived("big", blocks=12))
    assert snapshot(talk, D).decode_slots == 1
    assert talk(RequestArrived(RequestId("small"), 16, 16, whole=True)) == []
    talk(RequestAborted(RequestId("x0")))
    assert talk(PrefillFinished(ahead.leg_id, LEASE))[0].generation == D
    assert snapshot(talk, D).whole_legs == 1


def test_freed_decode_room_goes_to_those_already_prefilled(talk):
    talk(attached(P, Role.PREFILL))
    talk(attached(D, Role.DECODE, num_blocks=12))
    for name in ("x0", "x1", "x2"):
        talk(arrived(name))
    talk(PrefillFinished(LegId("x0.1"), LeaseId(1)))
    assert talk(PrefillFinished(LegId("x2.1"), LeaseId(2))) == []
    assert talk(PrefillFinished(LegId("x1.1"), LeaseId(3))) == []
    talk(LegStarted(LegId("x0.2")))
    assert talk(LegFinished(LegId("x0.2"))) == [
        StartLeg(RequestId("x1"), LegId("x1.2"), D, LegKind.DECODE, LeaseId(3))
    ]


def test_leased_blocks_hold_back_more_prefills(talk):
    talk(attached(P, Role.PREFILL, num_blocks=12))
    talk(attached(D, Role.DECODE))
    talk(arrived())
    assert talk(arrived("r2")) == []
    talk(PrefillFinished(LEG1, LEASE))
    assert talk.router.queued_count == 1
    released, start = talk(LegStarted(LEG2))
    assert released == ReleaseLease(P, LEASE)
    assert start.request_id == "r2"


def test_a_pressed_engine_gets_more_when_its_own_queue_is_empty_again(talk):
    talk(attached(A, Role.AGGREGATED))
    talk(arrived())
    talk(LoadReported(A, running=1, waiting=2, kv_usage=0.95))
    assert talk(arrived("r2")) == []
    (start,) = talk(LoadReported(A, running=1, waiting=0, kv_usage=0.95))
    assert start.request_id == "r2"
    view = snapshot(talk, A)
    assert (view.running, view.waiting, view.kv_usage) == (1, 0, 0.95)


@pytest.mark.parametrize(
    "event",
    [
        RequestAborted(R),
        PrefillFinished(LEG1, LEASE),
        LegStarted(LEG1),
        LegFinished(LEG1),
        WorkerLost(P),
        RoleChanged(P, Role.DECODE),
        WorkerDraining(P),
        LoadReported(P, 1, 1, 0.5),
        BlocksStored(P, (BlockHash(1),)),
        BlocksRemoved(P, (BlockHash(1),)),
        BlocksRemoved(P, None),
        TimeElapsed(),
    ],
)
def test_events_about_strangers_change_nothing(talk, event):
    assert talk(event) == []
    assert zero(talk)
    assert talk.router.views() == ()


def test_a_prefill_leg_that_starts_has_nothing_to_release(pair):
    pair(arrived())
    assert pair(LegStarted(LEG1)) == []


def test_a_lease_that_nobody_asked_for_is_released(talk):
    talk(attached(A, Role.AGGREGATED))
    talk(arrived())
    assert talk(PrefillFinished(LEG1, LEASE)) == [ReleaseLease(A, LEASE)]
    assert talk(LegFinished(LEG1)) == []


def test_a_request_id_used_twice_is_a_bug(pair):
    pair(arrived())
    with pytest.raises(InvariantError, match="r1 arrived twice"):
        pair(arrived())
    pair.router.check()


def test_a_generation_used_twice_is_a_bug(pair):
    with pytest.raises(InvariantError, match="generation 1 attached twice"):
        pair(attached(P, Role.DECODE))
    pair.router.check()

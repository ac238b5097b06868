"""The ordinary life of requests, and what is refused."""

import pytest

from nodeserve.errors import InvariantError
from nodeserve.ids import BlockHash, RequestId
from nodeserve.kv.block_hash import hash_blocks
from nodeserve.router.messages import (
    BlocksRemoved,
    BlocksStored,
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

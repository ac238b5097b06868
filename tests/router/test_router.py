import pytest

from nodeserve.errors import InvariantError
from nodeserve.ids import BlockHash, Generation, LeaseId, LegId, RequestId
from nodeserve.kv.block_hash import hash_blocks
from nodeserve.router.messages import (
    AbortLeg,
    BlocksRemoved,
    BlocksStored,
    FailRequest,
    LegFinished,
    LegKind,
    LegStarted,
    LoadReported,
    NodeDraining,
    PrefillFinished,
    ReleaseLease,
    ReportDrained,
    ReportNodeDrained,
    RequestAborted,
    RequestArrived,
    RoleChanged,
    StartLeg,
    TimeElapsed,
    WorkerAttached,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.router.router import MAX_ABORTED_PREFILLS, RouterConfig
from nodeserve.wire.control import Role

P, D, D2, A = Generation(1), Generation(2), Generation(3), Generation(4)
R = RequestId("r1")
LEG1, LEG2, LEG3 = LegId("r1.1"), LegId("r1.2"), LegId("r1.3")
LEASE = LeaseId(9)
BLOCK = 16


def attached(generation: Generation, role: Role, *, num_blocks: int = 1000) -> WorkerAttached:
    return WorkerAttached(generation, role, num_blocks, BLOCK, max_num_seqs=64)


def arrived(name: str = "r1", *, blocks: int = 10, priority: int = 0) -> RequestArrived:
    """Make a request that takes ``blocks`` in a prefill leg and one more in a decode leg."""
    return RequestArrived(RequestId(name), blocks * BLOCK, BLOCK, priority=priority)


@pytest.fixture
def pair(talk):
    """Talk with a prefill and a decode worker."""
    assert talk(attached(P, Role.PREFILL)) == []
    assert talk(attached(D, Role.DECODE)) == []
    return talk


def zero(talk) -> bool:
    return talk.router.queued_count == talk.router.running_count == 0 and all(
        view.reserved_blocks == view.queued_prefill_tokens == view.leases == view.decode_slots == 0
        and view.prefill_legs == view.decode_legs == view.whole_legs == 0
        for view in talk.router.views()
    )


def snapshot(talk, generation):
    return next(view for view in talk.router.views() if view.generation == generation)


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


# ------------------------------------------------------------------------------- aborts


def test_an_abort_of_a_queued_request_needs_nothing(talk):
    assert talk(arrived()) == []
    assert talk.router.queued_count == 1
    assert talk(RequestAborted(R)) == []
    assert zero(talk)


def test_a_handoff_under_way_at_an_abort_is_released_once(pair):
    pair(arrived())
    assert pair(RequestAborted(R)) == [AbortLeg(LEG1, P)]
    assert zero(pair)
    assert pair(PrefillFinished(LEG1, LEASE)) == [ReleaseLease(P, LEASE)]
    assert pair(PrefillFinished(LEG1, LEASE)) == []
    assert zero(pair)


def test_an_aborted_prefill_that_ends_without_handoff_is_forgotten(pair):
    pair(arrived())
    pair(RequestAborted(R))
    assert pair(LegFinished(LEG1)) == []
    assert pair(PrefillFinished(LEG1, LEASE)) == []


def test_a_late_handoff_of_a_dead_worker_is_not_released(pair):
    pair(arrived())
    pair(RequestAborted(R))
    pair(WorkerLost(P))
    assert pair(PrefillFinished(LEG1, LEASE)) == []


def test_only_so_many_aborted_prefills_are_remembered(pair):
    router = pair.router
    for number in range(MAX_ABORTED_PREFILLS + 1):
        router.handle(arrived(f"x{number}"), now_s=0.0)
        router.handle(RequestAborted(RequestId(f"x{number}")), now_s=0.0)
    assert pair(PrefillFinished(LegId("x0.1"), LEASE)) == []
    assert pair(PrefillFinished(LegId("x1.1"), LEASE)) == [ReleaseLease(P, LEASE)]


def test_an_abort_in_handoff_releases_the_lease(talk):
    talk(attached(P, Role.PREFILL))
    talk(attached(D, Role.DECODE, num_blocks=12))
    talk(arrived())
    talk(arrived("r2"))
    assert talk(PrefillFinished(LegId("r2.1"), LEASE)) == []
    assert talk(RequestAborted(RequestId("r2"))) == [ReleaseLease(P, LEASE)]
    talk(RequestAborted(R))
    assert zero(talk)


@pytest.mark.parametrize("started", [False, True])
def test_an_abort_while_decoding_stops_the_leg_and_holds_no_lease(pair, started):
    pair(arrived())
    pair(PrefillFinished(LEG1, LEASE))
    expected = [AbortLeg(LEG2, D), ReleaseLease(P, LEASE)]
    if started:
        assert pair(LegStarted(LEG2)) == [expected.pop()]
    assert pair(RequestAborted(R)) == expected
    assert pair(LegStarted(LEG2)) == pair(LegFinished(LEG2)) == pair(RequestAborted(R)) == []
    assert zero(pair)


# ------------------------------------------------------------------------------- losses


def test_a_lost_prefill_worker_sends_its_requests_to_another(pair):
    pair(arrived())
    assert pair(WorkerLost(P)) == [StartLeg(R, LEG2, D, LegKind.WHOLE)]
    assert pair(LegFinished(LEG1)) == []


def test_a_decode_worker_lost_before_output_starts_over_and_releases(pair):
    pair(arrived())
    pair(PrefillFinished(LEG1, LEASE))
    assert pair(WorkerLost(D)) == [
        ReleaseLease(P, LEASE),
        StartLeg(R, LEG3, P, LegKind.WHOLE),
    ]


def test_a_decode_worker_lost_after_output_fails_the_request(pair):
    pair(arrived())
    pair(PrefillFinished(LEG1, LEASE))
    pair(LegStarted(LEG2))
    (failed,) = pair(WorkerLost(D))
    assert failed.request_id == R
    assert "died while answering" in failed.reason
    assert zero(pair)


def test_a_lost_owner_does_not_stop_the_decode_leg(pair):
    pair(arrived())
    pair(PrefillFinished(LEG1, LEASE))
    assert pair(WorkerLost(P)) == []
    assert pair(LegStarted(LEG2)) == []
    assert pair(LegFinished(LEG2)) == []
    assert zero(pair)


def test_a_lost_owner_sends_a_waiting_handoff_back_to_the_queue(talk):
    talk(attached(P, Role.PREFILL))
    talk(attached(D, Role.DECODE, num_blocks=12))
    talk(arrived("r0"))
    talk(arrived())
    talk(PrefillFinished(LEG1, LEASE))
    commands = talk(WorkerLost(P))
    assert commands == [StartLeg(RequestId("r0"), LegId("r0.2"), D, LegKind.WHOLE)]
    assert talk.router.queued_count == 1
    assert talk(LegFinished(LegId("r0.2"))) == [StartLeg(R, LEG2, D, LegKind.WHOLE)]


def test_a_lost_slot_is_looked_for_elsewhere(pair):
    pair(attached(D2, Role.DECODE))
    pair(arrived())
    assert snapshot(pair, D).decode_slots == 1
    assert pair(WorkerLost(D)) == []
    assert snapshot(pair, D2).decode_slots == 1
    assert pair(PrefillFinished(LEG1, LEASE)) == [StartLeg(R, LEG2, D2, LegKind.DECODE, LEASE)]


def test_a_handoff_with_only_its_owner_left_runs_whole_there(pair):
    pair(arrived())
    pair(WorkerLost(D))
    assert pair(PrefillFinished(LEG1, LEASE)) == [
        ReleaseLease(P, LEASE),
        StartLeg(R, LEG2, P, LegKind.WHOLE),
    ]


def test_a_request_that_kills_three_workers_is_not_passed_on(talk):
    talk(arrived())
    for number in range(3):
        (start,) = talk(attached(Generation(10 + number), Role.AGGREGATED))
        assert isinstance(start, StartLeg)
        commands = talk(WorkerLost(Generation(10 + number)))
    (failed,) = commands
    assert isinstance(failed, FailRequest)
    assert "3 workers died" in failed.reason
    assert zero(talk)


def test_what_started_over_keeps_its_place_in_the_queue(talk):
    talk(attached(A, Role.AGGREGATED, num_blocks=12))
    talk(arrived("old"))
    talk(arrived("new"))
    assert talk(WorkerLost(A)) == []
    starts = talk(attached(D, Role.AGGREGATED, num_blocks=12))
    assert [start.request_id for start in starts] == ["old"]


# ------------------------------------------------------------------------ drain and role


def test_a_draining_worker_finishes_what_runs_and_reports_once(pair):
    pair(attached(D2, Role.DECODE))
    pair(arrived())
    pair(PrefillFinished(LEG1, LEASE))
    assert pair(WorkerDraining(D)) == []
    (start,) = pair(arrived("r2"))
    pair(PrefillFinished(start.leg_id, LeaseId(10)))
    assert snapshot(pair, D2).decode_legs == 1
    assert pair(WorkerDraining(D)) == []
    assert pair(LegStarted(LEG2)) == [ReleaseLease(P, LEASE)]
    assert pair(LegFinished(LEG2)) == [ReportDrained(D)]
    assert pair(TimeElapsed()) == []


def test_an_idle_worker_is_drained_at_once(pair):
    assert pair(WorkerDraining(D)) == [ReportDrained(D)]


def test_a_lease_keeps_its_owner_from_being_drained(pair):
    pair(arrived())
    assert pair(WorkerDraining(P)) == []
    pair(PrefillFinished(LEG1, LEASE))
    assert pair(LegStarted(LEG2)) == [ReleaseLease(P, LEASE), ReportDrained(P)]


def test_a_slot_moves_away_from_a_draining_worker(pair):
    pair(attached(D2, Role.DECODE))
    pair(arrived())
    assert pair(WorkerDraining(D)) == [ReportDrained(D)]
    assert pair(PrefillFinished(LEG1, LEASE)) == [StartLeg(R, LEG2, D2, LegKind.DECODE, LEASE)]


def test_a_handoff_on_the_last_worker_does_not_hold_up_its_drain(pair):
    pair(arrived())
    pair(WorkerLost(D))
    pair(WorkerDraining(P))
    assert pair(PrefillFinished(LEG1, LEASE)) == [ReleaseLease(P, LEASE), ReportDrained(P)]
    assert pair.router.queued_count == 1
    assert pair(attached(D2, Role.DECODE)) == [StartLeg(R, LEG2, D2, LegKind.WHOLE)]


def test_a_change_of_role_loses_nothing_and_steers_what_comes(pair):
    pair(arrived())
    pair(PrefillFinished(LEG1, LEASE))
    assert pair(RoleChanged(P, Role.DECODE)) == []
    assert pair(RoleChanged(D, Role.PREFILL)) == []
    (start,) = pair(arrived("r2"))
    assert (start.generation, start.kind) == (D, LegKind.PREFILL)
    assert pair(LegStarted(LEG2)) == [ReleaseLease(P, LEASE)]
    assert pair(LegFinished(LEG2)) == []
    (decode,) = pair(PrefillFinished(start.leg_id, LeaseId(10)))
    assert (decode.generation, decode.kind) == (P, LegKind.DECODE)


def test_two_workers_whose_leases_fill_each_other_do_not_wait_forever(talk):
    one, two = Generation(1), Generation(2)
    talk(attached(one, Role.PREFILL, num_blocks=10))
    talk(attached(two, Role.PREFILL, num_blocks=10))
    talk(attached(D2, Role.DECODE, num_blocks=11))
    talk(arrived("a"))
    talk(arrived("b"))
    talk(WorkerLost(D2))
    starts = talk(PrefillFinished(LegId("a.1"), LeaseId(1)))
    starts += talk(PrefillFinished(LegId("b.1"), LeaseId(1)))
    decoding = {(start.request_id, start.kind, start.generation) for start in starts}
    assert decoding == {("a", LegKind.DECODE, two), ("b", LegKind.DECODE, one)}


def test_a_draining_node_refuses_the_new_and_reports_once_when_empty(pair):
    pair(arrived())
    assert pair(NodeDraining()) == []
    (refused,) = pair(arrived("r2"))
    assert isinstance(refused, FailRequest)
    assert "shutting down" in refused.reason
    assert pair(RequestAborted(R)) == [AbortLeg(LEG1, P), ReportNodeDrained()]
    assert pair(NodeDraining()) == []


def test_an_empty_node_is_drained_at_once(talk):
    assert talk(NodeDraining()) == [ReportNodeDrained()]


# ------------------------------------------------------------------------------ waiting


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


# -------------------------------------------------------------------------------- races


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

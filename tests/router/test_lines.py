"""Claims about who waits, who may pass whom, and who is started when room is freed."""

from nodeserve.errors import CapacityError
from nodeserve.ids import LeaseId, LegId, RequestId
from nodeserve.router.messages import (
    FailRequest,
    LegFinished,
    LegKind,
    LegStarted,
    PrefillFinished,
    ReleaseLease,
    RequestAborted,
    RequestArrived,
    StartLeg,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.router.router import RouterConfig
from nodeserve.wire.kinds import Role
from tests.router.talking import (
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
)


def test_requests_wait_for_the_first_worker(talk):
    assert talk(arrived()) == []
    assert talk(attached(A, Role.AGGREGATED)) == [StartLeg(R, LEG1, A, LegKind.WHOLE)]


def test_handoff_that_is_given_up_makes_room_for_those_before_it(talk):
    talk(attached(P, Role.PREFILL, num_blocks=25))
    talk(attached(D2, Role.PREFILL, num_blocks=25))
    talk(attached(D, Role.DECODE))
    for name, blocks in (("r1", 10), ("r2", 9), ("r3", 10)):
        talk(arrived(name, blocks=blocks))
    assert [snapshot(talk, worker).prefill_legs for worker in (P, D2)] == [1, 2]
    talk(WorkerLost(D))
    talk(WorkerDraining(P))
    assert talk(PrefillFinished(LEG1, LEASE)) == []
    # Nobody is left to take what r2 has prefilled; the room of it is what r1 waits for.
    assert talk(PrefillFinished(LegId("r2.1"), LeaseId(2))) == [
        ReleaseLease(D2, LeaseId(2)),
        StartLeg(R, LEG2, D2, LegKind.DECODE, LEASE),
    ]


def test_a_full_queue_refuses_with_the_numbers(talk_with):
    talk = talk_with(RouterConfig(max_queued_requests=2))
    assert talk(arrived("a")) == talk(arrived("b")) == []
    (refused,) = talk(arrived())
    assert refused == FailRequest(
        R,
        "request r1 was not taken: 2 requests wait already, no more may; try again later or raise"
        " max_queued_requests",
        CapacityError.exit_code,
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

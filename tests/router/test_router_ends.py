"""Aborts, lost workers, drains and changes of role."""

import dataclasses

import pytest

from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.router.messages import (
    AbortLeg,
    FailRequest,
    LegFinished,
    LegKind,
    LegStarted,
    NodeDraining,
    PrefillFinished,
    ReleaseLease,
    ReportDrained,
    ReportNodeDrained,
    RequestAborted,
    RoleChanged,
    StartLeg,
    TimeElapsed,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.router.router import MAX_ABORTED_PREFILLS
from nodeserve.wire.kinds import Role
from tests.router.talking import (
    D2,
    LEASE,
    LEG1,
    LEG2,
    LEG3,
    A,
    D,
    P,
    R,
    arrived,
    attached,
    snapshot,
    zero,
)


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


def test_a_restorable_request_goes_on_elsewhere_and_in_one_leg(pair):
    pair(dataclasses.replace(arrived(), restorable=True))
    pair(PrefillFinished(LEG1, LEASE))
    assert pair(LegStarted(LEG2)) == [ReleaseLease(P, LEASE)]
    assert pair(WorkerLost(D)) == [StartLeg(R, LEG3, P, LegKind.WHOLE)]
    assert pair(LegStarted(LEG3)) == []
    assert pair(LegFinished(LEG3)) == []
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


def test_a_draining_node_reports_once_when_empty_and_takes_what_gateways_had_accepted(pair):
    pair(arrived())
    assert pair(NodeDraining()) == []
    assert pair(RequestAborted(R)) == [AbortLeg(LEG1, P), ReportNodeDrained()]
    assert pair(NodeDraining()) == []
    (started,) = pair(arrived("r2"))
    assert isinstance(started, StartLeg)


def test_an_empty_node_is_drained_at_once(talk):
    assert talk(NodeDraining()) == [ReportNodeDrained()]

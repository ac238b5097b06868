"""Claims about what a draining worker's requests do."""

import dataclasses

import pytest

from nodeserve.ids import Generation, LegId, RequestId
from nodeserve.router.messages import (
    AbortLeg,
    AnswersCounted,
    LegFinished,
    LegKind,
    LegStarted,
    PrefillFinished,
    ReleaseLease,
    ReportDrained,
    RequestArrived,
    StartLeg,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.router.moves import FEW_TOKENS, MOVED_TOKENS
from nodeserve.wire.kinds import Role
from tests.router.talking import D2, LEASE, LEG1, LEG2, LEG3, A, D, P, R, attached, snapshot, zero


def restorable(name: str = "r1", *, prompt: int = 160, output: int = 200) -> RequestArrived:
    return RequestArrived(RequestId(name), prompt, output, restorable=True)


@pytest.fixture
def two(talk):
    """Talk with two aggregated workers; the second is attached by the test."""
    talk(attached(A, Role.AGGREGATED))
    return talk


def running(talk, *requests: RequestArrived, worker: Generation = A) -> list[LegId]:
    """Start requests and let them answer; return their legs."""
    legs = []
    for request in requests:
        (start,) = talk(request)
        assert start.generation == worker
        talk(LegStarted(start.leg_id))
        legs.append(start.leg_id)
    return legs


def test_a_running_leg_goes_on_at_another_worker(two):
    (leg,) = running(two, restorable())
    two(attached(D2, Role.AGGREGATED))
    two(AnswersCounted({leg: 40}))
    assert two(WorkerDraining(A)) == [
        AbortLeg(leg, A),
        StartLeg(R, LEG2, D2, LegKind.WHOLE),
        ReportDrained(A),
    ]
    assert snapshot(two, D2).queued_prefill_tokens == 200
    two(LegStarted(LEG2))
    two(LegFinished(LEG2))
    assert zero(two)


def test_a_decode_leg_goes_on_whole_with_nothing_prefilled_again_by_others(pair):
    pair(restorable())
    pair(PrefillFinished(LEG1, LEASE))
    pair(LegStarted(LEG2))
    pair(attached(D2, Role.DECODE))
    assert pair(WorkerDraining(D)) == [
        AbortLeg(LEG2, D),
        StartLeg(R, LEG3, D2, LegKind.WHOLE),
        ReportDrained(D),
    ]


def test_a_leg_that_has_not_answered_takes_its_handoff_along(pair):
    pair(restorable())
    pair(PrefillFinished(LEG1, LEASE))
    pair(attached(D2, Role.DECODE))
    assert pair(WorkerDraining(D)) == [
        AbortLeg(LEG2, D),
        StartLeg(R, LEG3, D2, LegKind.DECODE, LEASE),
        ReportDrained(D),
    ]
    assert pair(LegStarted(LEG3)) == [ReleaseLease(P, LEASE)]


def test_a_leg_whose_handoff_is_lost_starts_over_elsewhere(pair):
    pair(restorable())
    pair(PrefillFinished(LEG1, LEASE))
    pair(WorkerLost(P))
    pair(attached(D2, Role.DECODE))
    assert pair(WorkerDraining(D))[:2] == [
        AbortLeg(LEG2, D),
        StartLeg(R, LEG3, D2, LegKind.WHOLE),
    ]


def test_without_another_decode_worker_a_prefill_worker_takes_over(pair):
    pair(restorable())
    pair(PrefillFinished(LEG1, LEASE))
    pair(LegStarted(LEG2))
    assert pair(WorkerDraining(D))[:2] == [
        AbortLeg(LEG2, D),
        StartLeg(R, LEG3, P, LegKind.WHOLE),
    ]


def test_a_prefill_leg_is_finished_and_hands_over_as_usual(pair):
    pair(restorable())
    pair(attached(D2, Role.PREFILL))
    assert pair(WorkerDraining(P)) == []
    assert pair(PrefillFinished(LEG1, LEASE)) == [StartLeg(R, LEG2, D, LegKind.DECODE, LEASE)]
    assert pair(LegStarted(LEG2)) == [ReleaseLease(P, LEASE), ReportDrained(P)]


def test_what_cannot_be_restored_is_finished_where_it_runs(two):
    (leg,) = running(two, dataclasses.replace(restorable(), restorable=False))
    two(attached(D2, Role.AGGREGATED))
    assert two(WorkerDraining(A)) == []
    assert two(LegFinished(leg)) == [ReportDrained(A)]


def test_an_answer_that_is_almost_over_is_finished_where_it_runs(two):
    long, short = running(two, restorable("a"), restorable("b"))
    two(attached(D2, Role.AGGREGATED))
    two(AnswersCounted({long: 200 - FEW_TOKENS - 1, short: 200 - FEW_TOKENS}))
    abort, _ = two(WorkerDraining(A))
    assert abort == AbortLeg(long, A)
    assert two(LegFinished(short)) == [ReportDrained(A)]


def test_a_worker_takes_the_next_legs_when_it_has_prefilled_the_last(two):
    legs = running(two, *[restorable(name, prompt=400) for name in "abcde"])
    two(attached(D2, Role.AGGREGATED))
    first = two(WorkerDraining(A))
    starts = [command for command in first if isinstance(command, StartLeg)]
    assert [start.request_id for start in starts] == ["a", "b"]
    assert snapshot(two, D2).queued_prefill_tokens <= MOVED_TOKENS
    assert two(LegStarted(starts[0].leg_id)) == [
        AbortLeg(legs[2], A),
        StartLeg(RequestId("c"), LegId("c.2"), D2, LegKind.WHOLE),
    ]
    two(LegStarted(starts[1].leg_id))
    two(LegStarted(LegId("c.2")))
    assert snapshot(two, D2).whole_legs == 5
    assert snapshot(two, A).whole_legs == 0


def test_a_longer_answer_than_a_step_takes_moves_alone(two):
    running(two, restorable("a", prompt=5 * MOVED_TOKENS), restorable("b"))
    two(attached(D2, Role.AGGREGATED))
    (_, start) = two(WorkerDraining(A))
    assert start.request_id == "a"
    _, next_start, drained = two(LegStarted(start.leg_id))
    assert (next_start.request_id, drained) == ("b", ReportDrained(A))


def test_legs_run_on_where_they_are_until_there_is_room(two):
    legs = running(two, restorable("a"), restorable("b", prompt=320))
    two(attached(D2, Role.AGGREGATED, num_blocks=40))
    (start,) = two(restorable("c", prompt=320))
    assert start.generation == D2
    two(LegStarted(start.leg_id))
    assert two(WorkerDraining(A)) == []
    assert two(LegFinished(start.leg_id)) == [
        AbortLeg(legs[0], A),
        StartLeg(RequestId("a"), LegId("a.2"), D2, LegKind.WHOLE),
    ]
    two(LegStarted(LegId("a.2")))
    assert snapshot(two, A).whole_legs == 1  # too large beside the other one
    assert two(LegFinished(LegId("a.2")))[-1] == ReportDrained(A)


def test_who_runs_gets_room_before_who_waits(two):
    (leg,) = running(two, restorable("a", prompt=320))
    two(WorkerDraining(A))
    assert two(restorable("b", prompt=320)) == []
    two(AnswersCounted({leg: 3}))
    commands = two(attached(D2, Role.AGGREGATED, num_blocks=40))
    assert commands[:2] == [
        AbortLeg(leg, A),
        StartLeg(RequestId("a"), LegId("a.2"), D2, LegKind.WHOLE),
    ]
    assert two.router.queued_count == 1


def test_a_count_of_a_leg_that_is_over_changes_nothing(two):
    (leg,) = running(two, restorable())
    two(LegFinished(leg))
    assert two(AnswersCounted({leg: 5})) == []
    assert zero(two)


def test_an_answer_lost_with_its_worker_needs_room_for_what_was_sent(two):
    (leg,) = running(two, restorable(output=100))
    two(AnswersCounted({leg: 90}))
    two(WorkerLost(A))
    assert two(attached(D2, Role.AGGREGATED)) == [StartLeg(R, LEG2, D2, LegKind.WHOLE)]
    assert snapshot(two, D2).reserved_blocks == -(-(160 + 90 + 10) // 16)


def test_a_handoff_is_not_pulled_by_its_owner_who_takes_over_behind_the_first_output(pair):
    pair(restorable())
    pair(PrefillFinished(LEG1, LEASE))
    assert pair(WorkerDraining(D)) == []
    assert pair(LegStarted(LEG2)) == [
        ReleaseLease(P, LEASE),
        AbortLeg(LEG2, D),
        StartLeg(R, LEG3, P, LegKind.WHOLE),
        ReportDrained(D),
    ]

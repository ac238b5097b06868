import itertools
from typing import get_args

import pytest

from nodeserve.errors import InvalidTransitionError, InvariantError
from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.router.losses import MAX_IN_A_ROW, MAX_IN_ALL
from nodeserve.router.messages import (
    AbortLeg,
    FailRequest,
    LegKind,
    ReleaseLease,
    RequestArrived,
    StartLeg,
)
from nodeserve.router.request_flow import (
    OVER,
    TRANSITIONS,
    AbortRequested,
    DecodePlaced,
    FirstOutputSeen,
    FlowEvent,
    HandoffGivenUp,
    HandoffGranted,
    LeaseOwnerLost,
    LegEnded,
    LegWorkerLost,
    MovePlaced,
    Phase,
    PrefillPlaced,
    Refused,
    RequestFlow,
    WholePlaced,
)

R = RequestId("r1")
P, D, D2 = Generation(1), Generation(2), Generation(3)
LEASE = LeaseId(77)

EVENTS: dict[type[FlowEvent], FlowEvent] = {
    PrefillPlaced: PrefillPlaced(P),
    WholePlaced: WholePlaced(D),
    DecodePlaced: DecodePlaced(D),
    MovePlaced: MovePlaced(D2),
    Refused: Refused("no room", 75),
    HandoffGranted: HandoffGranted(LEASE),
    HandoffGivenUp: HandoffGivenUp(),
    FirstOutputSeen: FirstOutputSeen(),
    LegEnded: LegEnded(),
    LegWorkerLost: LegWorkerLost(),
    LeaseOwnerLost: LeaseOwnerLost(),
    AbortRequested: AbortRequested(),
}
WAY_TO: dict[Phase, list[FlowEvent]] = {
    Phase.QUEUED: [],
    Phase.PREFILL: [PrefillPlaced(P)],
    Phase.HANDOFF: [PrefillPlaced(P), HandoffGranted(LEASE)],
    Phase.DECODE: [PrefillPlaced(P), HandoffGranted(LEASE), DecodePlaced(D)],
    Phase.DONE: [WholePlaced(D), LegEnded()],
    Phase.FAILED: [Refused("no room", 75)],
    Phase.ABORTED: [PrefillPlaced(P), AbortRequested()],
}


def flow_after(*events: FlowEvent) -> RequestFlow:
    flow = RequestFlow(RequestArrived(R, prompt_tokens=100, max_tokens=10))
    for event in events:
        flow.handle(event)
        flow.check()
    return flow


def state_of(flow: RequestFlow) -> dict[str, object]:
    return {name: getattr(flow, name) for name in RequestFlow.__slots__}


def test_events_and_ways_cover_the_whole_product():
    assert set(EVENTS) == set(get_args(FlowEvent))
    assert set(WAY_TO) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event_type", EVENTS)
def test_each_phase_takes_what_the_table_says_and_refuses_the_rest(phase, event_type):
    flow = flow_after(*WAY_TO[phase])
    assert flow.phase is phase
    after = TRANSITIONS.get((phase, event_type))
    before = state_of(flow)
    if after is None:
        with pytest.raises(InvalidTransitionError, match="r1"):
            flow.handle(EVENTS[event_type])
        assert state_of(flow) == before
    else:
        flow.handle(EVENTS[event_type])
        assert flow.phase is after
    flow.check()


def test_a_handed_over_request_releases_its_lease_at_the_first_output():
    flow = flow_after()
    first, second = LegId("r1.1"), LegId("r1.2")
    assert flow.handle(PrefillPlaced(P)) == [StartLeg(R, first, P, LegKind.PREFILL)]
    assert flow.handle(HandoffGranted(LEASE)) == []
    assert flow.handle(DecodePlaced(D)) == [StartLeg(R, second, D, LegKind.DECODE, LEASE)]
    assert flow.handle(FirstOutputSeen()) == [ReleaseLease(P, LEASE)]
    assert flow.handle(FirstOutputSeen()) == []
    assert flow.handle(LegEnded()) == []
    assert flow.phase is Phase.DONE


def test_a_decode_leg_that_ends_at_once_releases_the_lease():
    assert flow_after(*WAY_TO[Phase.DECODE]).handle(LegEnded()) == [ReleaseLease(P, LEASE)]


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (Phase.QUEUED, []),
        (Phase.PREFILL, [AbortLeg(LegId("r1.1"), P)]),
        (Phase.HANDOFF, [ReleaseLease(P, LEASE)]),
        (Phase.DECODE, [AbortLeg(LegId("r1.2"), D), ReleaseLease(P, LEASE)]),
    ],
)
def test_an_abort_stops_the_leg_and_releases_the_lease(phase, expected):
    flow = flow_after(*WAY_TO[phase])
    assert flow.handle(AbortRequested()) == expected
    assert flow.phase is Phase.ABORTED
    flow.check()


def test_an_abort_after_the_first_output_releases_nothing_again():
    flow = flow_after(*WAY_TO[Phase.DECODE], FirstOutputSeen())
    assert flow.handle(AbortRequested()) == [AbortLeg(LegId("r1.2"), D)]


def test_a_handoff_that_was_under_way_at_the_abort_is_released():
    flow = flow_after(*WAY_TO[Phase.PREFILL], AbortRequested())
    assert flow.handle(HandoffGranted(LEASE)) == [ReleaseLease(P, LEASE)]
    assert flow.phase is Phase.ABORTED
    flow.check()


def test_only_one_handoff_can_be_under_way_at_an_abort():
    late = flow_after(*WAY_TO[Phase.PREFILL], AbortRequested(), HandoffGranted(LEASE))
    for flow in (late, flow_after(AbortRequested())):
        before = state_of(flow)
        with pytest.raises(InvalidTransitionError, match="no leg"):
            flow.handle(HandoffGranted(LEASE))
        assert state_of(flow) == before


def test_a_prefill_worker_lost_starts_over_under_another_leg():
    flow = flow_after(*WAY_TO[Phase.PREFILL])
    assert flow.handle(LegWorkerLost()) == []
    assert flow.phase is Phase.QUEUED
    assert flow.handle(WholePlaced(D)) == [StartLeg(R, LegId("r1.2"), D, LegKind.WHOLE)]


def test_a_lease_owner_lost_during_handoff_starts_over_and_releases_nothing():
    flow = flow_after(*WAY_TO[Phase.HANDOFF])
    assert flow.handle(LeaseOwnerLost()) == []
    assert flow.phase is Phase.QUEUED


def test_a_lease_owner_lost_under_a_decode_leg_changes_nothing_but_the_lease():
    flow = flow_after(*WAY_TO[Phase.DECODE])
    assert flow.handle(LeaseOwnerLost()) == []
    assert flow.handle(FirstOutputSeen()) == []
    assert flow.handle(LegEnded()) == []


def test_a_lease_cannot_be_lost_twice():
    flow = flow_after(*WAY_TO[Phase.DECODE], FirstOutputSeen())
    before = state_of(flow)
    with pytest.raises(InvalidTransitionError, match="no lease"):
        flow.handle(LeaseOwnerLost())
    assert state_of(flow) == before


def test_a_decode_worker_lost_before_output_starts_over_and_releases_the_lease():
    flow = flow_after(*WAY_TO[Phase.DECODE])
    assert flow.handle(LegWorkerLost()) == [ReleaseLease(P, LEASE)]
    assert flow.phase is Phase.QUEUED


def test_a_decode_worker_lost_after_output_fails_the_request():
    flow = flow_after(*WAY_TO[Phase.DECODE], FirstOutputSeen())
    (failed,) = flow.handle(LegWorkerLost())
    assert isinstance(failed, FailRequest)
    assert "generation 2 died" in failed.reason
    assert flow.phase is Phase.FAILED


def test_a_restorable_request_lost_after_output_goes_on_whole_at_another_worker():
    flow = RequestFlow(RequestArrived(R, 100, 10, restorable=True))
    for event in (*WAY_TO[Phase.DECODE], FirstOutputSeen()):
        flow.handle(event)
    assert flow.handle(LegWorkerLost()) == []
    assert flow.phase is Phase.QUEUED
    assert flow.request.whole
    assert flow.handle(WholePlaced(D)) == [StartLeg(R, LegId("r1.3"), D, LegKind.WHOLE)]


def test_a_restorable_request_too_is_failed_when_three_workers_died_before_they_answered():
    flow = RequestFlow(RequestArrived(R, 100, 10, restorable=True))
    for event in (WholePlaced(D), FirstOutputSeen(), LegWorkerLost()):
        flow.handle(event)
    for _ in range(MAX_IN_A_ROW - 2):
        flow.handle(WholePlaced(D))
        assert flow.handle(LegWorkerLost()) == []
    assert flow.losses.is_last_chance
    flow.handle(WholePlaced(D))
    (failed,) = flow.handle(LegWorkerLost())
    assert "3 workers died under it in a row" in failed.reason


def test_a_request_that_answers_each_time_is_not_what_kills_its_workers():
    flow = RequestFlow(RequestArrived(R, 100, 10, restorable=True))
    for _ in range(MAX_IN_ALL - 1):
        for event in (WholePlaced(D), FirstOutputSeen(), LegWorkerLost()):
            assert not any(isinstance(c, FailRequest) for c in flow.handle(event))
    flow.handle(WholePlaced(D))
    flow.handle(FirstOutputSeen())
    (failed,) = flow.handle(LegWorkerLost())
    assert "10 workers died" in failed.reason


def test_a_request_on_its_last_chance_runs_whole():
    flow = flow_after(*[PrefillPlaced(P), LegWorkerLost()] * (MAX_IN_A_ROW - 1))
    assert flow.request.whole


def test_what_was_sent_belongs_to_the_prompt_where_a_request_goes_on():
    flow = RequestFlow(RequestArrived(R, 100, 10, restorable=True))
    for event in (*WAY_TO[Phase.DECODE], FirstOutputSeen()):
        flow.handle(event)
    flow.sent_tokens = 4
    assert flow.handle(MovePlaced(D2)) == [
        AbortLeg(LegId("r1.2"), D),
        StartLeg(R, LegId("r1.3"), D2, LegKind.WHOLE),
    ]
    assert (flow.request.prompt_tokens, flow.request.max_tokens) == (104, 6)
    flow.handle(FirstOutputSeen())
    flow.sent_tokens = 12  # more than was asked for, which is the engine's fault
    flow.handle(MovePlaced(D))
    assert (flow.request.prompt_tokens, flow.request.max_tokens) == (112, 1)
    assert flow.losses.in_all == 0


def test_a_leg_that_has_not_answered_moves_with_its_handoff():
    flow = flow_after(*WAY_TO[Phase.DECODE])
    assert flow.handle(MovePlaced(D2)) == [
        AbortLeg(LegId("r1.2"), D),
        StartLeg(R, LegId("r1.3"), D2, LegKind.DECODE, LEASE),
    ]
    assert flow.handle(FirstOutputSeen()) == [ReleaseLease(P, LEASE)]


def test_a_leg_that_moves_to_who_prefilled_it_runs_whole():
    flow = flow_after(*WAY_TO[Phase.DECODE])
    assert flow.handle(MovePlaced(P)) == [
        AbortLeg(LegId("r1.2"), D),
        ReleaseLease(P, LEASE),
        StartLeg(R, LegId("r1.3"), P, LegKind.WHOLE),
    ]


def test_a_handoff_that_nobody_else_can_take_is_released_and_queued():
    flow = flow_after(*WAY_TO[Phase.HANDOFF])
    assert flow.handle(HandoffGivenUp()) == [ReleaseLease(P, LEASE)]
    assert flow.phase is Phase.QUEUED
    assert flow.losses.in_all == 0


def test_a_request_that_lost_three_workers_is_failed():
    flow = flow_after(
        *(PrefillPlaced(P), LegWorkerLost()),
        *(PrefillPlaced(P), HandoffGranted(LEASE), LeaseOwnerLost()),
        *(WholePlaced(D), LegWorkerLost()),
        WholePlaced(D),
    )
    assert (flow.losses.in_a_row, flow.losses.in_all) == (2, 3)
    (failed,) = flow.handle(LegWorkerLost())
    assert isinstance(failed, FailRequest)
    assert "3 workers died" in failed.reason
    assert flow.phase is Phase.FAILED


def test_every_conversation_ends_at_most_once_and_releases_each_lease_once():
    for events in itertools.product(EVENTS.values(), repeat=4):
        flow = flow_after()
        granted = released = lost = 0
        for event in events:
            over = flow.phase in OVER
            held = flow.lease_id is not None
            try:
                commands = flow.handle(event)
            except InvalidTransitionError:
                continue
            assert not over or flow.phase is Phase.ABORTED
            granted += isinstance(event, HandoffGranted)
            lost += isinstance(event, LeaseOwnerLost) and held
            released += sum(isinstance(command, ReleaseLease) for command in commands)
            flow.check()
        assert granted - released - lost == (flow.lease_id is not None)


@pytest.mark.parametrize(
    ("phase", "field", "value"),
    [
        (Phase.QUEUED, "leg_id", LegId("x")),
        (Phase.PREFILL, "lease_id", LEASE),
        (Phase.HANDOFF, "lease_id", None),
        (Phase.DECODE, "lease_owner", D),
        (Phase.DECODE, "kind", LegKind.WHOLE),
        (Phase.DONE, "lease_id", LEASE),
        (Phase.ABORTED, "lease_owner", P),
    ],
)
def test_check_finds_what_does_not_fit_the_phase(phase, field, value):
    flow = flow_after(*WAY_TO[phase])
    setattr(flow, field, value)
    with pytest.raises(InvariantError, match="r1"):
        flow.check()

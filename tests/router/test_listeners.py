"""Claims about listeners as tenants: their limits, their deadlines, and a flood beside others."""

import heapq
import statistics
from collections.abc import Iterator

import pytest

from nodeserve.errors import CapacityError
from nodeserve.ids import LegId, RequestId
from nodeserve.router.messages import (
    FailRequest,
    LegFinished,
    LegKind,
    LegStarted,
    ListenerChanged,
    RequestAborted,
    StartLeg,
    TimeElapsed,
    WakeAt,
    WorkerLost,
)
from nodeserve.router.router import RouterConfig
from nodeserve.wire.kinds import Role
from tests.router.talking import A, D, P, arrived, attached


def started(commands):
    return [command.request_id for command in commands if isinstance(command, StartLeg)]


@pytest.fixture
def one_at_a_time(talk):
    """A worker that has room for one request, and runs one of listener ``batch``."""
    talk(attached(A, Role.AGGREGATED, num_blocks=12))
    assert started(talk(arrived("b0", listener="batch"))) == ["b0"]
    return talk


def test_a_listeners_own_limits_hold_where_the_node_has_room(talk):
    talk(ListenerChanged("batch", max_running=1, max_queued=1))
    talk(attached(A, Role.AGGREGATED))
    assert started(talk(arrived("b0", listener="batch"))) == ["b0"]
    assert talk(arrived("b1", listener="batch")) == []
    (refused,) = talk(arrived("b2", listener="batch"))
    assert refused == FailRequest(
        RequestId("b2"),
        "request b2 was not taken: 1 requests of listener batch wait already, no more may; try"
        " again later or raise its max_queued_requests",
        CapacityError.exit_code,
    )
    assert started(talk(arrived("c0", listener="chat"))) == ["c0"]
    assert started(talk(LegFinished(LegId("b0.1"), 3))) == ["b1"]
    (batch, chat) = talk.router.tenants()
    assert (batch.running, batch.queued, batch.refused) == (1, 0, 1)
    assert (chat.running, chat.queued, chat.refused) == (1, 0, 0)


def test_a_raised_limit_starts_those_who_waited_for_it(talk):
    talk(ListenerChanged("batch", max_running=1))
    talk(attached(A, Role.AGGREGATED))
    for name in ("b0", "b1", "b2"):
        talk(arrived(name, listener="batch"))
    assert started(talk(ListenerChanged("batch", max_running=2))) == ["b1"]
    assert started(talk(ListenerChanged("batch"))) == ["b2"]


def test_what_ends_waiting_or_running_makes_room_under_the_limit(talk):
    talk(ListenerChanged("batch", max_running=1))
    talk(attached(A, Role.AGGREGATED))
    for name in ("b0", "b1", "b2"):
        talk(arrived(name, listener="batch"))
    assert talk(RequestAborted(RequestId("b1"))) == []
    assert started(talk(RequestAborted(RequestId("b0")))) == ["b2"]


def test_a_full_queue_refuses_the_last_of_the_longest_line(talk_with):
    talk = talk_with(RouterConfig(max_queued_requests=3))
    for name in ("b0", "b1", "b2"):
        talk(arrived(name, listener="batch"))
    (refused,) = talk(arrived("c0", listener="chat"))
    assert isinstance(refused, FailRequest)
    assert refused.request_id == "b2"
    (refused,) = talk(arrived("b3", listener="batch"))
    assert refused.request_id == "b3"
    (batch, chat) = talk.router.tenants()
    assert (batch.queued, batch.refused, chat.queued, chat.refused) == (2, 2, 1, 0)


def test_who_waits_past_the_deadline_is_failed_and_the_next_one_gets_its_own(talk):
    talk(ListenerChanged("chat", queue_timeout_s=5.0))
    assert talk(arrived("c0", listener="chat"), 1.0) == [WakeAt(6.0)]
    assert talk(arrived("c1", listener="chat"), 2.0) == []
    assert talk(arrived("b0", listener="batch"), 2.0) == []
    (failed, wake) = talk(TimeElapsed(), 6.5)
    assert failed == FailRequest(
        RequestId("c0"),
        "request c0 was not taken: it has waited 5 s to start, longer than listener chat lets"
        " requests wait; try again later or raise its queue_timeout_s",
        CapacityError.exit_code,
    )
    assert wake == WakeAt(7.0)
    assert talk(TimeElapsed(), 6.9) == [WakeAt(7.0)]
    (failed,) = talk(TimeElapsed(), 7.0)
    assert failed.request_id == "c1"
    assert [tenant.expired for tenant in talk.router.tenants()] == [2, 0]
    assert talk.router.queued_count == 1


def test_who_started_in_time_has_no_deadline_even_when_its_worker_dies(talk):
    talk(ListenerChanged("chat", queue_timeout_s=5.0))
    talk(attached(A, Role.AGGREGATED))
    talk(arrived("c0", listener="chat"))
    talk(LegStarted(LegId("c0.1")))
    assert [type(command) for command in talk(WorkerLost(A), 1.0)] == [FailRequest]
    talk(attached(D, Role.AGGREGATED))
    talk(arrived("c1", listener="chat"), 2.0)
    assert talk(WorkerLost(D), 3.0) == []
    assert talk(TimeElapsed(), 99.0) == []
    assert talk.router.queued_count == 1


def test_a_better_band_is_first_in_the_queue_and_in_the_line_for_decode_slots(talk):
    talk(ListenerChanged("batch", priority=1))
    talk(attached(P, Role.PREFILL))
    talk(attached(D, Role.DECODE, num_blocks=12))
    for number in range(7):
        talk(arrived(f"b{number}", listener="batch"))
    # Four wait for a slot already prefilled; that holds back their own band only.
    assert started(talk(arrived("c0", listener="chat"))) == ["c0"]
    assert talk.router._lines.decode_line.request_ids()[0] == "c0"


def test_a_priority_of_the_api_passes_its_own_listener_only(one_at_a_time):
    talk = one_at_a_time
    talk(arrived("c0", listener="chat"))
    talk(arrived("b1", listener="batch"))
    talk(arrived("b2", listener="batch", priority=-9))
    order, leg = [], LegId("b0.1")
    while names := started(talk(LegFinished(leg, 16))):
        order += names
        leg = LegId(f"{names[0]}.1")
    assert order == ["c0", "b2", "b1"]


# -------------------------------------------------------------------------- a flood

SLOTS, BATCH_S, CHAT_S = 16, 20.0, 1.0
"""How many run at once, and how long each does: those of the flood 10 s more or less."""


def waits_s(talk, arrivals) -> dict[str, list[float]]:
    """Run a node of one worker with `SLOTS` slots in virtual time; return each one's wait."""
    talk(attached(A, Role.AGGREGATED, num_blocks=SLOTS * 11))
    arrived_s: dict[RequestId, float] = {}
    waits: dict[str, list[float]] = {}
    ends: list[tuple[float, LegId]] = []
    handle = talk.router.handle  # checked at the end: a check takes all who wait in hand

    def carry_out(commands, now_s) -> None:
        for command in commands:
            assert isinstance(command, StartLeg)
            assert command.kind is LegKind.WHOLE
            listener = command.request_id.rstrip("0123456789")
            waits.setdefault(listener, []).append(now_s - arrived_s[command.request_id])
            spread_s = int(command.request_id.removeprefix(listener)) * 7 % 21 - 10
            runs_s = BATCH_S + spread_s if listener == "batch" else CHAT_S
            heapq.heappush(ends, (now_s + runs_s, command.leg_id))

    def finish_until(until_s) -> None:
        while ends and ends[0][0] <= until_s:
            now_s, leg_id = heapq.heappop(ends)
            tokens = 1600 if leg_id.startswith("batch") else 80
            carry_out(handle(LegFinished(leg_id, tokens), now_s=now_s), now_s)

    for at_s, listener, number in arrivals:
        finish_until(at_s)
        event = arrived(f"{listener}{number}", listener=listener)
        arrived_s[event.request_id] = at_s
        carry_out(handle(event, now_s=at_s), at_s)
    finish_until(float("inf"))
    assert talk.router.queued_count == 0
    return waits


def chat_every_2_s(number: int) -> Iterator[tuple[float, str, int]]:
    return ((2.0 * one + 1.0, "chat", one) for one in range(number))


def flood_of(number: int) -> Iterator[tuple[float, str, int]]:
    return ((0.0, "batch", one) for one in range(number))


@pytest.mark.parametrize("limit", [None, SLOTS - 4])
def test_a_flood_of_a_thousand_starves_nobody(talk, limit, record_property):
    talk(ListenerChanged("batch", max_running=limit))
    waits = waits_s(talk, [*flood_of(1000), *chat_every_2_s(300)])
    assert {name: len(found) for name, found in waits.items()} == {"batch": 1000, "chat": 300}
    chat_s, batch_s = max(waits["chat"]), statistics.median(waits["batch"])
    figures = f"chat waits {chat_s:.1f} s at most, the flood {batch_s:.1f} s in the median"
    record_property(f"{limit or SLOTS} of {SLOTS} slots for the flood", figures)
    # The flood's own wait is what everybody would have without listeners.
    assert batch_s > 50 * chat_s, (batch_s, chat_s)
    # Slots that the flood may not take leave no wait at all.
    assert limit is None or chat_s == 0.0


def test_without_listeners_the_same_flood_does_starve(talk):
    arrivals = [*flood_of(1000), *chat_every_2_s(300)]
    together = [
        (at_s, "batch", number + 5000 * (name == "chat")) for at_s, name, number in arrivals
    ]
    late = waits_s(talk, together)["batch"][1000:]
    assert len(late) == 300
    assert min(late) > 10 * BATCH_S

"""Claims about the desk, between a scripted router and workers that are not there."""

from collections import deque
from typing import Any, cast

import pytest

from nodeserve.clock import ManualClock
from nodeserve.dispatcher.codecs import Codecs
from nodeserve.dispatcher.desk import RequestDesk
from nodeserve.dispatcher.gateway_link import GatewayLink
from nodeserve.dispatcher.traces import Traces
from nodeserve.dispatcher.utilities import Utilities
from nodeserve.dispatcher.worker_link import Worker, WorkerTable
from nodeserve.errors import InvariantError, PeerError
from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.kv.block_hash import hash_blocks, root_seed
from nodeserve.router.messages import (
    AbortLeg,
    AnswersCounted,
    Command,
    Event,
    FailRequest,
    LegKind,
    ReleaseLease,
    ReportDrained,
    ReportNodeDrained,
    RequestAborted,
    RequestArrived,
    StartLeg,
    TimeElapsed,
    WakeAt,
    WorkerLost,
)
from nodeserve.wire import control
from nodeserve.wire.engine_core import ABORT, ADD, UTILITY
from tests.dispatcher.fakes import FIELDS, decode, encode, of, request
from tests.dispatcher.test_worker_link import attach

GENERATION = Generation(7)
FIRST = RequestId("d3-1")


class ScriptedRouter:
    """Answers each event with the commands that come next."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.replies: deque[list[Command]] = deque()

    def handle(self, event: Event, *, now_s: float) -> list[Command]:
        self.events.append(event)
        return self.replies.popleft() if self.replies else []


class Workers:
    """Takes what is sent, or refuses it."""

    def __init__(self) -> None:
        self.attached: dict[int, Worker] = {7: Worker(attach(7))}
        self.sent: list[tuple[int, bytes, Any]] = []
        self.refuses = False
        self.can_resume = True

    def send(self, worker: Worker, kind: bytes, payload: bytes, aux: list[bytes]) -> None:
        if self.refuses:
            raise PeerError("gone")
        self.sent.append((worker.generation, kind, decode(payload)))


class Outside:
    """What the process around the desk is told."""

    generation = 3

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.reports: list[object] = []
        self.wakes: list[float] = []
        self.messages: list[list[Any]] = []

    def report(self, message: control.WorkerDrained | control.NodeDrained) -> None:
        self.reports.append(message)

    def wake_at(self, at_s: float) -> None:
        self.wakes.append(at_s)

    def give_up(self, worker: Worker, cause: str) -> None:
        del self.workers.attached[worker.generation]

    def send(self, gateway: GatewayLink, message: list[Any], aux: list[bytes]) -> None:
        self.messages.append(message)


class Gateway:
    listener = "chat"

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}
        self.batch: list[Any] = []


class Setting:
    """A desk and all its neighbours."""

    def __init__(self) -> None:
        self.router = ScriptedRouter()
        self.workers = Workers()
        self.outside = Outside(self.workers)
        self.gateway = cast("GatewayLink", Gateway())
        self.clock = ManualClock(5.0)
        utilities = Utilities(self.ask, lambda *_: None, 1.0, dispatcher=3)
        self.desk = RequestDesk(
            self.router,
            cast("WorkerTable", self.workers),
            utilities,
            Traces(),
            self.clock,
            self.outside,
        )
        self.desk.codecs = Codecs(FIELDS, "xgrammar")
        self.desk.block_size = 4
        self.desk.max_model_len = 100

    def ask(self, worker: Worker, payload: bytes, aux: list[bytes]) -> None:
        self.workers.send(worker, UTILITY, payload, aux)

    def add(self, wire_id: str = "a", *replies: Command, **sampling: Any) -> None:
        self.router.replies.append(list(replies))
        self.desk.add(self.gateway, [encode(request(wire_id, **sampling))])


@pytest.fixture
def at() -> Setting:
    return Setting()


def start(kind: LegKind, leg: str = "d3-1.1", lease: int | None = None) -> StartLeg:
    lease_id = LeaseId(lease) if lease is not None else None
    return StartLeg(FIRST, LegId(leg), GENERATION, kind, lease_id)


def test_request_is_told_with_the_hashes_of_its_full_blocks(at: Setting) -> None:
    fields = request("a", list(range(10)), max_tokens=500)
    fields[7], fields[13] = "salt", 3
    at.desk.add(at.gateway, [encode(fields)])
    assert at.router.events == [
        RequestArrived(
            request_id=FIRST,
            prompt_tokens=10,
            max_tokens=90,  # no more than fits the model
            block_hashes=hash_blocks(list(range(10)), 4, root_seed(None, "salt")),
            priority=3,
            restorable=True,
            listener="chat",
        )
    ]


def test_request_with_media_has_no_hashes_and_stays_whole(at: Setting) -> None:
    fields = request("a")
    fields[2] = [{"image": 1}]
    at.desk.add(at.gateway, [encode(fields)])
    (event,) = at.router.events
    assert isinstance(event, RequestArrived)
    assert (event.block_hashes, event.whole) == ((), True)


def test_request_that_only_frees_what_it_names_is_dropped(at: Setting) -> None:
    fields = request("a")
    fields[FIELDS.request.index("abort_immediately")] = True
    at.desk.add(at.gateway, [encode(fields)])
    assert at.router.events == []
    assert at.gateway.requests == {}


def test_worker_that_takes_nothing_is_given_up_and_the_router_hears(at: Setting) -> None:
    at.workers.refuses = True
    at.add("a", start(LegKind.WHOLE))
    assert isinstance(at.router.events[0], RequestArrived)
    assert at.router.events[1:] == [AnswersCounted({LegId("d3-1.1"): 0}), WorkerLost(GENERATION)]
    assert at.workers.attached == {}


def test_leg_for_a_worker_that_was_just_retired_is_not_sent(at: Setting) -> None:
    at.workers.attached.clear()
    at.add("a", start(LegKind.WHOLE))
    assert at.workers.sent == []
    assert at.desk.legs == {}


def test_abort_forgets_at_once_and_reaches_the_leg(at: Setting) -> None:
    at.add("a", start(LegKind.WHOLE))
    at.router.replies.append([AbortLeg(LegId("d3-1.1"), GENERATION)])
    at.desk.abort(at.gateway, [encode(["a", "unknown"])])
    assert at.router.events[1:] == [RequestAborted(FIRST)]
    assert at.workers.sent[1:] == [(7, ABORT, ["d3-1.1"])]
    assert (at.desk.legs, at.gateway.requests) == ({}, {})
    assert at.workers.attached[7].unstarted[LegKind.WHOLE] == 0


def test_failed_request_ends_with_an_error(at: Setting) -> None:
    at.add("a", FailRequest(FIRST, "no room", 75))
    ((index, (row,), *_),) = at.outside.messages
    assert (index, row[:2], of(row, "finish_reason")) == (0, ["a", []], 3)
    assert at.gateway.requests == {}
    (trace,) = at.desk.traces.recent
    assert (trace.error, trace.exit_code) == ("no room", 75)


def test_other_commands_go_where_they_belong(at: Setting) -> None:
    at.router.replies.append(
        [
            ReleaseLease(GENERATION, LeaseId(9)),
            ReleaseLease(Generation(8), LeaseId(9)),
            ReportDrained(GENERATION),
            ReportNodeDrained(),
            WakeAt(9.5),
            FailRequest(RequestId("unknown"), "x"),
            AbortLeg(LegId("unknown"), Generation(8)),
        ]
    )
    at.desk.tell(TimeElapsed())
    number = (3 << 32) + 1
    assert at.workers.sent == [(7, UTILITY, [0, number, "nodeserve_release", [[9]]])]
    assert at.outside.reports == [control.WorkerDrained(generation=7), control.NodeDrained()]
    assert at.outside.wakes == [9.5]
    assert at.outside.messages == []


def test_decode_leg_without_its_handoff_is_a_bug(at: Setting) -> None:
    with pytest.raises(InvariantError, match="without its handoff"):
        at.add("a", start(LegKind.DECODE, lease=5))


def test_new_leg_takes_the_place_of_the_lost_one(at: Setting) -> None:
    at.add("a", start(LegKind.PREFILL))
    at.router.replies.append([start(LegKind.PREFILL, "d3-1.2")])
    at.desk.tell(TimeElapsed())
    assert list(at.desk.legs) == ["d3-1.2"]
    assert [kind for _, kind, _ in at.workers.sent] == [ADD, ADD]
    assert at.workers.attached[7].unstarted[LegKind.PREFILL] == 1


def test_gateway_that_speaks_before_any_worker_is_counted(at: Setting) -> None:
    at.desk.codecs = None
    at.desk.add(at.gateway, [encode(request("a"))])
    assert at.router.events == []
    assert at.desk.traces.counters.rejected_frames == 1

"""Claims about what the ledger is told of requests."""

from types import SimpleNamespace

import pytest

from nodeserve.bus.ledger_client import LedgerClient
from nodeserve.clock import ManualClock
from nodeserve.dispatcher.bookings import GREET_EVERY_S, MAX_NOTED, NOTE_EVERY_S, Bookings
from nodeserve.dispatcher.records import ClientRequest, Leg
from nodeserve.router.messages import LegKind
from nodeserve.wire.accounting import (
    EndedLeg,
    LedgerAck,
    StartedRequest,
    decode_to_ledger,
    encode_message,
)
from nodeserve.wire.kinds import Role

GATEWAY = SimpleNamespace(listener="chat", batch=[])


class Port:
    def __init__(self):
        self.sent = []
        self.answers = []

    def send(self, frame):
        self.sent.append(decode_to_ledger(frame))
        self.answers = [encode_message(LedgerAck(seq=self.sent[-1].seq))]
        return True

    def recv(self):
        return self.answers.pop() if self.answers else None

    def close(self):
        self.sent.append("closed")


class Books:
    """Bookings with a clock, and requests to book."""

    def __init__(self):
        self.clock = ManualClock(100.0)
        self.port = Port()
        self.bookings = Bookings(
            LedgerClient(self.port),
            self.clock,
            lambda: 1_000_000.0 + self.clock.now_s(),
            generation=2,
            model="m",
        )
        self.number = 0

    def request(self, prompt=100, **more):
        self.number += 1
        return ClientRequest(
            f"d2-{self.number}", "cmpl-x", GATEWAY, None, [], prompt, self.clock.now_s(), **more
        )

    def leg(self, request, kind, worker="w", role=Role.AGGREGATED):
        leg = Leg(
            f"{request.request_id}.{len(request.legs) + 1}",
            kind,
            request,
            SimpleNamespace(name=worker),
            "cmpl-x",
            [],
            request.sent,
            role,
        )
        self.bookings.leg_began(leg)
        return leg

    def answer(self, leg, tokens):
        leg.started = True
        leg.request.sent.extend(range(tokens))

    def ended(self, request, finish="length"):
        self.bookings.ended(request, finish)
        self.clock.advance(NOTE_EVERY_S)
        self.port.sent.clear()
        self.bookings.tick()
        return self.port.sent[-1].ended[-1]


@pytest.fixture
def books():
    return Books()


def test_a_request_is_noted_from_its_first_leg_on(books):
    request = books.request()
    books.clock.advance(3.0)
    books.leg(request, LegKind.WHOLE)
    books.bookings.tick()
    (note,) = books.port.sent
    assert (note.generation, note.seq, note.ended) == (2, 1, ())
    assert note.started == (
        StartedRequest("d2-1", "cmpl-x", "chat", "m", arrived_unix_s=1_000_100.0),
    )


def test_a_request_that_has_ended_is_said_with_all_that_was_used(books):
    request = books.request(prompt=100)
    request.cached_tokens = 64
    leg = books.leg(request, LegKind.WHOLE, "decode-0", Role.DECODE)
    books.answer(leg, 20)
    books.clock.advance(5.0)
    ended = books.ended(request)
    assert (ended.request_id, ended.outcome) == ("d2-1", "length")
    assert (ended.arrived_unix_s, ended.ended_unix_s) == (1_000_100.0, 1_000_105.0)
    assert (ended.prompt_tokens, ended.cached_tokens, ended.output_tokens) == (100, 64, 20)
    assert (ended.scrap_tokens, ended.resumed) == (0, 0)
    assert ended.legs == (EndedLeg("d2-1.1", "decode-0", "decode", False),)
    assert books.port.sent[-1].started == ()


def test_prefill_and_decode_are_both_of_use(books):
    request = books.request()
    books.leg(request, LegKind.PREFILL, "prefill-0", Role.PREFILL)
    request.handoff = object()
    books.answer(books.leg(request, LegKind.DECODE, "decode-0", Role.DECODE), 5)
    ended = books.ended(request)
    assert [(leg.role, leg.is_scrap) for leg in ended.legs] == [
        ("prefill", False),
        ("decode", False),
    ]
    assert ended.scrap_tokens == 0


def test_what_is_computed_again_after_a_loss_is_scrap(books):
    request = books.request(prompt=100)
    request.cached_tokens = 60
    books.answer(books.leg(request, LegKind.WHOLE), 7)
    books.answer(books.leg(request, LegKind.WHOLE), 3)
    ended = books.ended(request)
    assert [leg.is_scrap for leg in ended.legs] == [True, False]
    assert (ended.output_tokens, ended.scrap_tokens) == (10, 100 - 60 + 7)


def test_of_a_leg_that_was_lost_before_it_answered_nobody_knows_what_it_computed(books):
    request = books.request(prompt=100)
    books.leg(request, LegKind.WHOLE)
    books.answer(books.leg(request, LegKind.WHOLE), 3)
    ended = books.ended(request)
    assert ([leg.is_scrap for leg in ended.legs], ended.scrap_tokens) == ([True, False], 0)


def test_a_handoff_that_was_lost_makes_its_prefill_scrap(books):
    request = books.request(prompt=100)
    books.leg(request, LegKind.PREFILL)
    request.handoff = object()
    books.leg(request, LegKind.PREFILL)
    books.answer(books.leg(request, LegKind.DECODE), 3)
    ended = books.ended(request)
    assert [leg.is_scrap for leg in ended.legs] == [True, False, False]
    assert ended.scrap_tokens == 100


def test_a_prompt_that_the_decode_worker_computed_again_was_prefilled_for_nobody(books):
    request = books.request(prompt=100)
    request.cached_tokens = 10
    books.leg(request, LegKind.PREFILL)
    request.handoff = object()
    books.answer(books.leg(request, LegKind.DECODE), 3)
    books.bookings.handoff_failed(request)
    ended = books.ended(request)
    assert ([leg.is_scrap for leg in ended.legs], ended.scrap_tokens) == ([True, False], 90)


def test_a_decode_leg_that_takes_its_handoff_along_keeps_the_prefill(books):
    request = books.request(prompt=100)
    books.leg(request, LegKind.PREFILL)
    request.handoff = object()
    books.leg(request, LegKind.DECODE)
    books.answer(books.leg(request, LegKind.DECODE), 3)
    ended = books.ended(request)
    assert [leg.is_scrap for leg in ended.legs] == [False, True, False]
    assert ended.scrap_tokens == 0


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_of_aborted_and_failed_requests_all_is_scrap(books, finish):
    request = books.request(prompt=100)
    request.cached_tokens = 30
    books.leg(request, LegKind.PREFILL)
    request.handoff = object()
    books.answer(books.leg(request, LegKind.DECODE), 12)
    ended = books.ended(request, finish)
    assert [leg.is_scrap for leg in ended.legs] == [True, True]
    assert (ended.outcome, ended.scrap_tokens) == (finish, 100 - 30 + 12)


@pytest.mark.parametrize(
    ("has_stop", "tokens", "outcome"),
    [(True, 5, "stop"), (False, 5, "abort"), (True, 0, "abort")],
)
def test_an_abort_may_be_a_stop_string_where_there_is_one(books, has_stop, tokens, outcome):
    request = books.request(has_stop_strings=has_stop)
    books.answer(books.leg(request, LegKind.WHOLE), tokens)
    assert books.ended(request, "abort").outcome == outcome


def test_a_request_that_never_ran_has_used_nothing(books):
    books.bookings.ended(books.request(), "error")
    books.bookings.tick()
    assert [(note.started, note.ended) for note in books.port.sent] == [((), ())]


def test_notes_wait_for_each_other_and_a_greeting_comes_now_and_then(books):
    books.bookings.tick()
    books.port.sent.clear()
    books.leg(books.request(), LegKind.WHOLE)
    books.clock.advance(NOTE_EVERY_S / 2)
    books.bookings.tick()
    books.leg(books.request(), LegKind.WHOLE)
    assert books.port.sent == []
    books.clock.advance(NOTE_EVERY_S / 2)
    books.bookings.tick()
    assert [len(note.started) for note in books.port.sent] == [2]
    books.clock.advance(GREET_EVERY_S - 0.1)
    books.bookings.tick()
    books.clock.advance(0.2)
    books.bookings.tick()
    assert [len(note.started) for note in books.port.sent] == [2, 0]


def test_many_requests_go_in_several_messages(books):
    for _ in range(MAX_NOTED + 1):
        books.leg(books.request(), LegKind.WHOLE)
    books.bookings.tick()
    assert [len(note.started) for note in books.port.sent] == [MAX_NOTED, 1]


def test_what_is_left_is_said_at_the_end(books):
    books.bookings.tick()
    request = books.request()
    books.answer(books.leg(request, LegKind.WHOLE), 1)
    books.bookings.ended(request, "stop")
    books.bookings.close()
    assert len(books.port.sent[-2].ended) == 1
    assert books.port.sent[-1] == "closed"

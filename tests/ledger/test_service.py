"""What the ledger's process answers to whom."""

import time

import msgspec
import pytest

from nodeserve.clock import unix_now_s
from nodeserve.wire import control
from nodeserve.wire.accounting import (
    LedgerAck,
    LedgerHello,
    RequestsNoted,
    StartedRequest,
    UseReported,
)
from nodeserve.wire.ledger_control import LedgerEngineGone, LedgerHeartbeat, LedgerReady
from tests.energy.shapes import engine, gpu, leg, log, meters, read, steps
from tests.ledger.books import ended, started

MONITOR, ENGINE, DISPATCHER = 1, 3, 9


def reading(at_s, counter_mj):
    told = read(at_s, {"GPU-0": counter_mj}, generation=MONITOR)
    return msgspec.structs.replace(told, at_unix_s=unix_now_s())


def noted(seq, *, starts=(), ends=()):
    return RequestsNoted(generation=DISPATCHER, seq=seq, started=starts, ended=ends)


@pytest.fixture
def at_s():
    """A time ahead of the clock, so that nothing is settled by grace."""
    return time.monotonic() + 1000.0


@pytest.fixture
def monitor(node, at_s):
    monitor = node.speaker(MONITOR)
    monitor.greet(meters(gpu(), generation=MONITOR))
    monitor.say(reading(at_s, 0))
    return monitor


def windows(node, count):
    return node.read_when(
        lambda ledger: list(ledger.meters()),
        lambda rows: sum(row.metered_s for row in rows) >= count,
    )


def test_an_engine_is_asked_for_its_hello_and_acknowledged_when_booked(node, monitor, at_s):
    worker = node.speaker(ENGINE)
    worker.hello = engine(ENGINE)
    one = msgspec.structs.replace(steps(at_s, at_s + 1.0, batch=(leg(1),)), seq=1)
    worker.number(lambda _seq: one)
    worker.hear(LedgerHello)
    monitor.say(reading(at_s + 1.0, 500_000))
    worker.settle()
    (row,) = windows(node, 1)
    assert (row.metered_mj, row.allocated_mj) == (500_000, 500_000)


def test_a_monitor_that_is_not_known_is_asked_which_meters_there_are(node, at_s):
    monitor = node.speaker(MONITOR)
    monitor.hello = meters(gpu(), generation=MONITOR)
    monitor.say(reading(at_s, 0))
    monitor.hear(LedgerHello)
    monitor.say(reading(at_s + 1.0, 0))
    monitor.say(reading(at_s + 2.0, 70_000))
    windows(node, 1)


def test_requests_are_booked_and_acknowledged_without_any_meter(node):
    dispatcher = node.speaker(DISPATCHER)
    dispatcher.number(lambda seq: noted(seq, starts=(started(1),)))
    dispatcher.number(lambda seq: noted(seq, ends=(ended(1),)))
    dispatcher.settle()
    (row,) = node.read(lambda ledger: list(ledger.tokens()))
    assert row.requests == 1


def test_who_speaks_for_another_generation_is_not_heard(node):
    dispatcher = node.speaker(DISPATCHER + 1)
    dispatcher.say(noted(1, ends=(ended(1),)))
    honest = node.speaker(DISPATCHER)
    honest.number(lambda seq: noted(seq, ends=(ended(2),)))
    honest.settle()
    (row,) = node.read(lambda ledger: list(ledger.tokens()))
    assert row.requests == 1


def test_nonsense_is_dropped_and_the_ledger_goes_on(node, at_s):
    worker = node.speaker(ENGINE)
    worker._socket.send(b"nonsense")
    wrong = msgspec.structs.replace(
        engine(ENGINE), work=msgspec.structs.replace(engine(ENGINE).work, flops_per_s=0.0)
    )
    worker.say(wrong)
    worker.say(engine(ENGINE))
    worker.hear(LedgerAck)
    worker.say(log(at_s, at_s - 5.0, seq=1, generation=ENGINE))
    node.hear(LedgerHeartbeat)
    assert node.stop().count("ledger_message_refused") == 2


def test_listeners_with_a_budget_are_reported_to_the_dispatcher(nodes, at_s):
    node = nodes(budgets={"chat": "day"}).start()
    dispatcher = node.speaker(DISPATCHER)
    start = StartedRequest("d9-1", "cmpl-1-0-0123abcd", "chat", "m", unix_now_s())
    dispatcher.number(lambda seq: noted(seq, starts=(start,)))
    dispatcher.settle()
    monitor, worker = node.speaker(MONITOR), node.speaker(ENGINE)
    monitor.greet(meters(gpu(), generation=MONITOR))
    worker.greet(engine(ENGINE))
    worker.hear(LedgerAck)
    monitor.say(reading(at_s, 0))
    batch = (msgspec.structs.replace(leg(1), leg_id="d9-1.1"),)
    one = msgspec.structs.replace(steps(at_s, at_s + 1.0, batch=batch), seq=1)
    worker.number(lambda _seq: one)
    monitor.say(reading(at_s + 1.0, 500_000))
    report = dispatcher.hear(UseReported)
    while report.uses[0].energy_mj == 0:
        report = dispatcher.hear(UseReported)
    (use,) = report.uses
    assert (use.listener, use.energy_mj) == ("chat", 500_000)
    assert use.period_ends_unix_s > unix_now_s()


def test_a_dead_engine_is_waited_for_no_more(node, monitor, at_s):
    worker = node.speaker(ENGINE)
    worker.greet(engine(ENGINE))
    worker.hear(LedgerAck)
    half = msgspec.structs.replace(steps(at_s, at_s + 0.5, batch=(leg(1),)), seq=1)
    worker.number(lambda _seq: half)
    monitor.say(reading(at_s + 1.0, 500_000))
    node.hear(LedgerHeartbeat, lambda beat: beat.waiting == 1)
    node.say(LedgerEngineGone(generation=ENGINE))
    windows(node, 1)


def test_it_says_again_that_it_is_ready(node):
    ready = node.ask(control.SayAgain(), LedgerReady)
    assert (ready.generation, ready.pid) == (node.spec.generation, node.process.pid)


def test_a_disk_without_room_is_said_and_nothing_is_lost(nodes, tmp_path):
    """A limit on the size of files stands for a full disk."""
    node = nodes(file_bytes=300_000).start()
    dispatcher = node.speaker(DISPATCHER)
    for number in range(40):
        ends = tuple(ended(100 * number + n, wire_id="w" * 500) for n in range(40))
        dispatcher.number(lambda seq, ends=ends: noted(seq, ends=ends))
    beat = node.hear(LedgerHeartbeat, lambda beat: beat.problem is not None)
    assert "cannot be used" in beat.problem
    assert dispatcher.kept
    node.give_room()
    node.hear(LedgerHeartbeat, lambda beat: beat.problem is None)
    dispatcher.settle()
    (row,) = node.read(lambda ledger: list(ledger.tokens()))
    assert row.requests == 1600
    assert node.verdict().problems == ()

"""The ledger's process, killed at any point: its books add up, and nothing counts twice."""

import random
import signal
import subprocess
import time

import pytest

from nodeserve.ledger.database import Lock
from nodeserve.wire.ledger_control import LedgerHeartbeat
from tests.ledger.nodes import WITHIN_S
from tests.ledger.traffic import Traffic

NUM_KILLS = 30
NUM_WINDOWS = 10_000


@pytest.mark.timeout(180)
def test_killed_at_any_point_it_adds_up_and_nothing_counts_twice(nodes, record_property):
    """At least 30 kills over at least 10,000 windows, with resets, leaps and readings not made.

    Windows of past hours are folded each time it starts.
    """
    source = random.Random(5)
    node = nodes(window_days=0.0)
    traffic = None
    kills = windows = 0
    begun_s = time.monotonic()
    while kills < NUM_KILLS or windows < NUM_WINDOWS:
        node.start()
        traffic = traffic or Traffic(node, source)
        killed_s = time.monotonic() + source.uniform(0.02, 0.7)
        while time.monotonic() < killed_s:
            for _ in range(8):
                traffic.second()
            traffic.listen()
            node.process.poll()
            time.sleep(0.01)  # the node's seconds are that short
        node.kill()
        assert node.process.returncode == -signal.SIGKILL
        kills += 1
        verdict = node.verdict()
        assert verdict.problems == ()
        windows = sum(meter.windows for meter in verdict.sums)
    node.start()
    traffic.is_taking_requests = False
    traffic.dispatcher.probe()
    until_s = time.monotonic() + WITHIN_S
    while traffic.dispatcher.kept:
        assert time.monotonic() < until_s
        traffic.second()
        traffic.listen()
        time.sleep(0.01)
    node.stop()
    verdict = node.verdict()
    assert verdict.problems == ()
    assert all(meter.quarantine_mj > 0 for meter in verdict.sums)
    assert traffic.num_resets > 0
    assert traffic.num_leaps > 0
    tokens = list(node.read(lambda ledger: list(ledger.tokens())))
    assert sum(row.requests for row in tokens) == len(traffic.ended)
    assert sum(row.prompt_tokens for row in tokens) == sum(e.prompt_tokens for e in traffic.ended)
    assert sum(row.scrap_tokens for row in tokens) == sum(e.scrap_tokens for e in traffic.ended)
    record_property("kills", kills)
    record_property("windows", windows)
    record_property("seconds", round(time.monotonic() - begun_s, 1))


def test_it_ends_when_told_to_and_books_what_it_has_heard(node):
    traffic = Traffic(node, random.Random(1))
    for _ in range(20):
        traffic.second()
    traffic.engines[2][0].settle()
    assert node.stop() == ""
    assert sum(meter.windows for meter in node.verdict().sums) > 40


def test_another_process_with_the_same_ledger_makes_it_wait_and_say_so(nodes, tmp_path):
    lock = Lock(tmp_path / "ledger.db")
    node = nodes().start()
    beat = node.hear(LedgerHeartbeat, lambda message: message.problem is not None)
    assert "another node writes it" in beat.problem
    lock.close()
    node.hear(LedgerHeartbeat, lambda message: message.problem is None)


def test_a_file_that_is_no_ledger_ends_it_with_what_to_do(nodes, tmp_path):
    (tmp_path / "ledger.db").write_text("not a database, but long enough to look at\n" * 50)
    node = nodes()
    process = node.spawn()
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "is no ledger of nodeserve; move it away" in errors
    assert isinstance(process, subprocess.Popen)

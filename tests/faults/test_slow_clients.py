"""Clients that do not read, connect in crowds and say nothing, or hold up the node's end."""

import contextlib
import json
import os
import resource
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import SIMULATED
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

DEAF = 200
STREAM_TOKENS = 2000
CROWD = 2000
DRAIN_S = 3
MIB = 1 << 20

MOST_BYTES_EACH = MIB
"""What may be kept for a client that does not read: its answer of 2000 events, and no more."""


@pytest.fixture(scope="module")
def front(tiny_model, tmp_path_factory):
    """A fast node. Python gateways answer so many requests for minutes: too long for a test."""
    with daemon(
        tmp_path_factory.mktemp("f"), str(tiny_model), *SIMULATED, "--speedup", "5"
    ) as running:
        yield running.wait_ready()


def rss_bytes(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def deaf_client(node, max_tokens):
    """Ask for a stream and never read it."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(str(node.socket))
    asked = {"prompt": "Tell me all.", "stream": True, "ignore_eos": True}
    body = json.dumps({"model": node.model, "max_tokens": max_tokens, **asked}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


def num_running(status):
    return sum(load.running for load in status.requests.workers)


def test_clients_that_never_read_cost_little_memory_and_nobody_else(front, record_property):
    node = front
    node.complete("hello", max_tokens=4)
    names = ("gateway-api", "dispatcher")
    before = {name: rss_bytes(node.process_named(name).pid) for name in names}
    generations = {p.name: p.generation for p in node.status().processes}
    with contextlib.ExitStack() as crowd:
        for _ in range(DEAF):
            crowd.enter_context(contextlib.closing(deaf_client(node, STREAM_TOKENS)))
        node.wait_until(lambda status: num_running(status) > DEAF / 10)
        began_s = time.monotonic()
        node.complete("hello", max_tokens=4)
        record_property("answer_beside_s", time.monotonic() - began_s)
        node.wait_until(lambda status: num_running(status) == 0, within_s=120)
        grown = {name: rss_bytes(node.process_named(name).pid) - before[name] for name in names}
        record_property("grown_mib", {name: size // MIB for name, size in grown.items()})
        assert max(grown.values()) < DEAF * MOST_BYTES_EACH
        assert node.complete("hello", max_tokens=4)["usage"]["completion_tokens"] == 4
    assert {p.name: p.generation for p in node.status().processes} == generations


def test_the_requests_of_deaf_clients_end_when_they_leave(front):
    node = front
    with contextlib.ExitStack() as crowd:
        for _ in range(10):
            crowd.enter_context(contextlib.closing(deaf_client(node, 30_000)))
        node.wait_until(lambda status: num_running(status) >= 5)
    node.wait_until(lambda status: num_running(status) == 0)
    assert node.complete("hello", max_tokens=4)["usage"]["completion_tokens"] == 4


def test_a_crowd_that_connects_and_says_nothing_keeps_nobody_out(front, record_property):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, CROWD + 1000), hard))
    node = front
    try:
        with contextlib.ExitStack() as crowd:
            for _ in range(CROWD):
                client = crowd.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(60)
                client.connect(str(node.socket))
            began_s = time.monotonic()
            assert node.complete("hello", max_tokens=4)["usage"]["completion_tokens"] == 4
            record_property("answer_behind_the_crowd_s", time.monotonic() - began_s)
        assert node.complete("hello", max_tokens=4)["usage"]["completion_tokens"] == 4
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_node_stops_at_its_deadline_though_a_client_never_reads(tiny_model, tmp_path):
    config = tmp_path / "node.toml"
    config.write_text(f"[drain]\ndeadline_s = {DRAIN_S}\n")
    words = (str(tiny_model), "--config", str(config), *SIMULATED)
    with daemon(tmp_path, *words) as node:
        node.wait_ready()
        with contextlib.closing(deaf_client(node, 30_000)):
            node.wait_until(lambda status: num_running(status) == 1)
            began_s = time.monotonic()
            assert node.stop() == 1
            node.wait_for_line("requests were cut off")
            assert time.monotonic() - began_s < DRAIN_S + 20  # a client could wait for ever

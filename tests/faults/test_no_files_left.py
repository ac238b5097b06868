"""A process that may open no more files goes on with those that it has."""

import contextlib
import os
import resource
import socket
import threading
from pathlib import Path

import pytest

from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import PROMPTS, Stream
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

ENOUGH_LOOKS_S = 7.0
"""Longer than three probes of a gateway take."""


@contextlib.contextmanager
def no_more_files(pid):
    """Let a process open no file, not even one in place of another."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module", params=["rust", "python"])
def front(request, tiny_model, tmp_path_factory):
    """A slow node behind either gateway."""
    words = (*SIMULATED[:2], "--gateway", request.param, "--speedup", "0.1")
    with daemon(tmp_path_factory.mktemp(request.param), str(tiny_model), *words) as running:
        yield running.wait_ready()


def test_a_gateway_without_files_finishes_its_streams_and_accepts_later(front):
    gateway = front.process_named("gateway-api")
    streams = [Stream(front, front.model, prompt, max_tokens=60) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(5)
    with contextlib.ExitStack() as waiting:
        with no_more_files(gateway.pid):
            clients = [waiting.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(20)]
            for client in clients:
                client.settimeout(60)
                client.connect(str(front.socket))
            assert {stream.end()[1] for stream in streams} == {"length"}
            if "rust" in front.words:  # the Python gateway's loop tries without a pause at times
                before_s = cpu_s(gateway.pid)
                threading.Event().wait(2)
                assert cpu_s(gateway.pid) - before_s < 1
        assert front.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert front.process_named("gateway-api").generation == gateway.generation


def test_a_supervisor_without_files_ends_nobody_and_starts_again_later(node):
    pid = node.process.pid
    worker, gateway = node.process_named("decode-0"), node.process_named("gateway-api")
    streams = [Stream(node, node.model, prompt, max_tokens=150) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(5)
    with no_more_files(pid):
        os.kill(worker.pid, 9)
        node.wait_for_line("restart_in_s")
        before_s = cpu_s(pid)
        threading.Event().wait(ENOUGH_LOOKS_S)
        assert cpu_s(pid) - before_s < ENOUGH_LOOKS_S / 2
    assert {stream.end()[1] for stream in streams} == {"length"}
    after = node.wait_until(
        lambda status: any(
            p.name == "decode-0" and p.state == "ready" and p.generation > worker.generation
            for p in status.processes
        )
    )
    assert gateway.generation in {p.generation for p in after.processes}

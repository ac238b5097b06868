"""A gateway or dispatcher that dies cuts its streams off at once; the socket stays open."""

import signal
import threading
import time

import httpx
import pytest

from nodeserve.wire.control import RestartRequest
from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import PROMPTS, Stream
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

ENDS_WITHIN_S = 5.0
"""A bound for streams that would otherwise hang for ever, not a figure."""


def begin_streams(node):
    streams = [Stream(node, node.model, prompt, max_tokens=400) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(5)
    return streams


def cut_off(streams):
    """Return how long after now the last stream has ended; none of them whole."""
    began_s = time.monotonic()
    for stream in streams:
        stream.thread.join(ENDS_WITHIN_S)
        assert not stream.thread.is_alive()
        assert stream.finish == "cut off"
    return time.monotonic() - began_s


@pytest.fixture(scope="module", params=["rust", "python"])
def front(request, tiny_model, tmp_path_factory):
    """A slow node behind either gateway."""
    words = (*SIMULATED[:2], "--gateway", request.param, "--speedup", "0.1")
    with daemon(tmp_path_factory.mktemp(request.param), str(tiny_model), *words) as running:
        yield running.wait_ready()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("name", ["dispatcher", "gateway-api"])
def test_streams_of_a_lost_front_end_at_once_and_the_next_request_is_answered(front, name, number):
    front.wait_until(lambda status: status.state == "ready")
    workers = {p.name: p.pid for p in front.status().processes if p.kind == "worker"}
    gateway = front.process_named("gateway-api").generation
    streams = begin_streams(front)
    assert gone(front.kill(name, number))
    cut_off(streams)
    front.wait_until(
        lambda status: any(
            p.name == "gateway-api" and p.generation > gateway for p in status.processes
        )
    )
    assert front.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2
    after = front.wait_until(lambda status: status.state == "ready")
    assert {p.name: p.pid for p in after.processes if p.kind == "worker"} == workers
    front.wait_until(lambda status: not any(load.running for load in status.requests.workers))


@pytest.mark.parametrize("name", ["dispatcher", "gateway-api"])
def test_a_front_that_died_too_often_comes_back_by_a_restart(tiny_model, tmp_path, name):
    words = (*SIMULATED, "--aggregated", "1", "--speedup", "20")
    with daemon(tmp_path, str(tiny_model), *words) as node:
        node.wait_ready()
        for _ in range(6):
            before = node.process_named(name)
            assert gone(node.kill(name))
            status = node.wait_until(lambda status, before=before: _moved_on(status, before))
        assert status.state == "unavailable"
        assert f"{name} is failed (`nodeserve restart {name}` tries again)" in status.detail
        assert node.command(RestartRequest(worker=name)).error is None
        node.wait_until(lambda status: status.state == "ready")
        assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2


def _moved_on(status, before):
    now = next(process for process in status.processes if process.name == before.name)
    is_back = now.state == "ready" and now.generation > before.generation
    return now.state == "failed" or (is_back and status.state == "ready")


def test_a_client_that_connects_while_no_gateway_runs_waits_for_the_next(node):
    answers = []
    name = node.model

    def ask():
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(node.socket))) as client:
            body = {"model": name, "prompt": "hello", "max_tokens": 2}
            url = "http://node/v1/completions"
            answers.append(client.post(url, json=body, timeout=60).status_code)

    assert gone(node.kill("gateway-api"))
    asking = [threading.Thread(target=ask) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert answers == [200] * 8


def test_nobody_notices_the_death_of_the_fork_server(node):
    streams = [Stream(node, node.model, prompt, max_tokens=40) for prompt in PROMPTS[:4]]
    for stream in streams:
        stream.wait_for(5)
    assert gone(node.kill("forkserver"))
    assert {stream.end()[1] for stream in streams} == {"length"}
    node.wait_until(
        lambda status: any(
            p.name == "forkserver" and p.state == "ready" and p.restarts for p in status.processes
        )
    )

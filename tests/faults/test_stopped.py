"""A process that is stopped exists, keeps its connections, and does nothing: it is replaced."""

import signal
import time

import pytest

from tests.e2e.streams import PROMPTS, Stream, busy_workers
from tests.support.daemon import gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

DETECTED_WITHIN_S = 1.2


def stop(node, name):
    """Stop a process; return how long the node took to get rid of it."""
    began_s = time.monotonic()
    pid = node.kill(name, signal.SIGSTOP)
    assert gone(pid)
    return time.monotonic() - began_s


def test_streams_of_a_stopped_worker_go_on_where_they_stopped(node):
    model = node.model
    calm = [Stream(node, model, prompt, max_tokens=60) for prompt in PROMPTS]
    expected = [stream.end()[:2] for stream in calm]
    before = node.status().requests
    streams = [Stream(node, model, prompt, max_tokens=60) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(10)
    assert stop(node, busy_workers(node.status())[0]) < DETECTED_WITHIN_S
    assert [stream.end()[:2] for stream in streams] == expected
    after = node.status().requests
    assert after.resumed_requests > before.resumed_requests
    assert after.failed_requests == before.failed_requests
    node.wait_for_line("stopped by a signal or a debugger")


def test_a_prompt_survives_the_stop_of_its_prefill_worker(crawling):
    node = crawling
    asked = {"max_tokens": 4, "temperature": 0}
    prompt = PROMPTS[0] * 6
    expected = Stream(node, node.model, prompt, cache_salt="calm", **asked).end()[:2]
    stream = Stream(node, node.model, prompt, cache_salt="hurt", **asked)
    status = node.wait_until(
        lambda status: any(load.queued_prefill_tokens for load in status.requests.workers)
    )
    busy = next(load for load in status.requests.workers if load.queued_prefill_tokens)
    name = next(p.name for p in status.processes if p.generation == busy.generation)
    assert stop(node, name) < DETECTED_WITHIN_S
    assert stream.end()[:2] == expected


@pytest.mark.parametrize("name", ["dispatcher", "gateway-api"])
def test_a_stopped_front_is_replaced_and_the_next_request_is_answered(node, name):
    before = node.process_named("gateway-api").generation
    assert stop(node, name) < DETECTED_WITHIN_S
    node.wait_until(
        lambda status: any(
            p.name == "gateway-api" and p.generation > before for p in status.processes
        )
    )
    assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_stopped_fork_server_is_replaced_and_forks_the_next_worker(node):
    assert stop(node, "forkserver") < DETECTED_WITHIN_S
    node.wait_until(lambda status: status.state == "ready")
    before = node.process_named("decode-1").generation
    node.kill("decode-1")
    node.wait_until(
        lambda status: any(
            p.name == "decode-1" and p.state == "ready" and p.generation > before
            for p in status.processes
        )
    )

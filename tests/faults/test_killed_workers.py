"""A worker that dies costs its requests a pause: no token is lost, whatever it was doing."""

import contextlib
import os
import signal
import threading

import pytest

from nodeserve.wire.control import DrainRequest, RestartRequest
from nodeserve.wire.kinds import Role
from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import PROMPTS, Stream, busy_workers
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

GREEDY = {"temperature": 0, "max_tokens": 40}


def worker_of(status, what):
    """Return the name of the first worker whose load is as said."""
    found = next(load for load in status.requests.workers if what(load))
    return next(p.name for p in status.processes if p.generation == found.generation)


def state_of(status, name):
    return next(process.state for process in status.processes if process.name == name)


def expected_of(node, prompts, **more):
    return [Stream(node, node.model, prompt, **GREEDY | more).end()[:2] for prompt in prompts]


def test_thirty_two_streams_survive_a_killed_worker(node):
    prompts = [f"{number} {prompt}" for number in range(4) for prompt in PROMPTS]
    calm = [Stream(node, node.model, prompt, **GREEDY) for prompt in prompts]
    expected = [stream.end()[:2] for stream in calm]
    streams = [Stream(node, node.model, prompt, **GREEDY) for prompt in prompts]
    for stream in streams:
        stream.wait_for(5)
    node.kill(busy_workers(node.status())[0])
    assert [stream.end()[:2] for stream in streams] == expected


def test_a_prefill_worker_that_dies_in_the_middle_of_a_prompt_costs_nothing(crawling):
    (expected,) = expected_of(crawling, [PROMPTS[0] * 6], max_tokens=3, cache_salt="calm")
    asked = GREEDY | {"max_tokens": 3, "cache_salt": "prefill"}
    stream = Stream(crawling, crawling.model, PROMPTS[0] * 6, **asked)
    status = crawling.wait_until(
        lambda status: any(load.queued_prefill_tokens for load in status.requests.workers)
    )
    crawling.kill(worker_of(status, lambda load: load.queued_prefill_tokens))
    assert stream.end()[:2] == expected


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE], ids=["owner", "fetcher"])
def test_either_side_may_die_while_kv_is_handed_over(crawling, role):
    (expected,) = expected_of(crawling, [PROMPTS[1] * 6], max_tokens=3, cache_salt="calm")
    asked = GREEDY | {"max_tokens": 3, "cache_salt": f"{role}"}
    stream = Stream(crawling, crawling.model, PROMPTS[1] * 6, **asked)
    crawling.wait_until(lambda status: status.requests.handoffs.leased)
    for number in range(2):  # one of them has part in it
        crawling.kill(f"{role}-{number}")
    assert stream.end()[:2] == expected
    crawling.wait_until(lambda status: not status.requests.handoffs.leased)


def test_a_worker_that_dies_while_it_drains_costs_nothing_and_stays_down(node):
    expected = expected_of(node, PROMPTS[:4])
    streams = [Stream(node, node.model, prompt, **GREEDY) for prompt in PROMPTS[:4]]
    for stream in streams:
        stream.wait_for(5)
    name = busy_workers(node.status())[0]
    pid = node.process_named(name).pid
    draining = threading.Thread(target=node.command, args=(DrainRequest(worker=name),))
    draining.start()
    node.wait_for_line(f"worker_draining name={name}")
    with contextlib.suppress(ProcessLookupError):  # it was that quick
        os.kill(pid, signal.SIGKILL)
    assert [stream.end()[:2] for stream in streams] == expected
    draining.join(60)
    assert node.process_named(name).state == "down"
    assert node.command(RestartRequest(worker=name)).error is None


def test_requests_wait_for_the_only_worker_and_go_on_when_it_is_back(tiny_model, tmp_path):
    words = (*SIMULATED, "--speedup", "0.1", "--aggregated", "1")
    with daemon(tmp_path, str(tiny_model), *words) as only:
        only.wait_ready()
        expected = expected_of(only, PROMPTS[:3])
        streams = [Stream(only, only.model, prompt, **GREEDY) for prompt in PROMPTS[:3]]
        for stream in streams:
            stream.wait_for(5)
        only.kill("aggregated-0")
        late = Stream(only, only.model, PROMPTS[0], **GREEDY)
        assert [stream.end()[:2] for stream in streams] == expected
        assert late.end()[:2] == expected[0]


def test_a_crash_loop_opens_the_breaker_of_that_worker_and_the_node_serves_on(slow):
    for _ in range(6):
        before = slow.process_named("prefill-1")
        assert gone(slow.kill("prefill-1"))
        status = slow.wait_until(
            lambda status, before=before: any(
                p.name == "prefill-1"
                and (
                    p.state == "failed" or (p.state == "ready" and p.generation > before.generation)
                )
                for p in status.processes
            )
        )
    assert state_of(status, "prefill-1") == "failed"
    assert status.state == "degraded"
    assert "prefill-1 is failed" in status.detail
    slow.wait_for_line("process_failed name=prefill-1")
    assert slow.complete(PROMPTS[0], max_tokens=2)["usage"]["completion_tokens"] == 2
    assert slow.command(RestartRequest(worker="prefill-1")).error is None
    slow.wait_until(lambda status: status.state == "ready")

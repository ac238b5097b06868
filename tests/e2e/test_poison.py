"""A request that kills whoever runs it is failed, and the node goes on."""

import json
import threading

import pytest

from tests.e2e.streams import busy_workers
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

NUM_DEATHS = 3


def kill_who_runs_it(node):
    """Kill the worker of the only request, as the request would do, until it is fenced."""
    (name,) = busy_workers(node.wait_until(busy_workers))
    generation = node.process_named(name).generation
    node.kill(name)
    node.wait_until(
        lambda status: all(load.generation != generation for load in status.requests.workers)
    )


@pytest.fixture(scope="module", params=["rust", "python"])
def node(request, tiny_model, tmp_path_factory):
    words = ("--simulate", "4xh100-sxm", "--gateway", request.param, "--speedup", "0.1")
    with daemon(tmp_path_factory.mktemp("p"), str(tiny_model), *words) as running:
        yield running.wait_ready()


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_request_that_killed_three_workers_is_failed_and_not_passed_on(node, stream):
    body = {"model": node.model, "prompt": "Kill! " * 40, "max_tokens": 1500, "stream": stream}
    before = node.status()
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(node.client.post("/v1/completions", json=body))
    )
    asking.start()
    for _ in range(NUM_DEATHS):
        kill_who_runs_it(node)
    asking.join(60)
    (answer,) = answers
    if stream:
        said = [line for line in answer.text.splitlines() if line.startswith("data: {")]
        error = json.loads(said[-1].removeprefix("data: "))["error"]
    else:
        assert answer.status_code == 500
        error = answer.json()["error"]
    assert error["message"] == "Internal server error"  # all that the wire can carry
    after = node.status().requests
    assert after.failed_requests == before.requests.failed_requests + 1
    assert "3 workers died under it" in after.recent[-1].error
    status = node.wait_until(lambda status: status.state == "ready")
    deaths = sum(process.restarts for process in status.processes)
    assert deaths == sum(process.restarts for process in before.processes) + NUM_DEATHS
    assert node.complete("Are you still there?", max_tokens=3)["usage"]["completion_tokens"] == 3

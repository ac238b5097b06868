"""A request that kills whoever computes it is failed alone, and the node goes on."""

import json
import threading

import pytest

from nodeserve.router.losses import MAX_IN_A_ROW
from tests.e2e.streams import Stream
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

SLOW = (
    *("--simulate", "4xh100-sxm", "--speedup", "0.01"),
    *("--", "--max-num-seqs", "16", "--max-num-batched-tokens", "16"),
)
"""Prompts take many steps, so that their worker can be killed before it answers."""

POISON_TOKENS = 1800


def computes_poison(load):
    return load.queued_prefill_tokens >= POISON_TOKENS


def kill_who_computes_it(node):
    """Kill a worker as the request would do, and wait until it is fenced."""
    status = node.wait_until(lambda status: any(map(computes_poison, status.requests.workers)))
    (generation,) = [w.generation for w in status.requests.workers if computes_poison(w)]
    node.kill(next(p.name for p in status.processes if p.generation == generation))
    node.wait_until(
        lambda status: all(load.generation != generation for load in status.requests.workers)
    )


@pytest.fixture(scope="module", params=["rust", "python"])
def node(request, tiny_model, tmp_path_factory):
    words = ("--gateway", request.param, *SLOW)
    with daemon(tmp_path_factory.mktemp("p"), str(tiny_model), *words) as running:
        yield running.wait_ready()


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_request_that_kills_its_workers_is_failed_and_nobody_else(node, stream):
    poison = f"{'Streaming' if stream else 'Whole'} poison. ".ljust(POISON_TOKENS, "!")
    body = {"model": node.model, "prompt": poison, "max_tokens": 20, "stream": stream}
    before = node.status()
    others = [Stream(node, node.model, f"Story {n}.", max_tokens=100) for n in range(6)]
    for other in others:
        other.wait_for(2)
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(node.client.post("/v1/completions", json=body))
    )
    asking.start()
    for _ in range(MAX_IN_A_ROW):
        kill_who_computes_it(node)
    asking.join(60)
    (answer,) = answers
    if stream:
        said = [line for line in answer.text.splitlines() if line.startswith("data: {")]
        error = json.loads(said[-1].removeprefix("data: "))["error"]
    else:
        assert answer.status_code == 500
        error = answer.json()["error"]
    assert error["message"] == "Internal server error"  # all that the wire can carry
    assert all(len(other.end()[0]) == 100 for other in others)
    after = node.status().requests
    assert after.failed_requests == before.requests.failed_requests + 1
    (why,) = [trace.error for trace in after.recent[-7:] if trace.error is not None]
    assert "3 workers died under it in a row" in why
    status = node.wait_until(lambda status: status.state == "ready")
    deaths = sum(process.restarts for process in status.processes)
    assert deaths == sum(process.restarts for process in before.processes) + MAX_IN_A_ROW

"""A worker that is drained while it streams gives its requests to others."""

import pytest

from nodeserve.wire.control import DrainRequest, RestartRequest
from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import Stream, busy_workers
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

NUM_STREAMS, NUM_TOKENS = 32, 300
PROMPTS = [
    f"Story number {number}. " + "Once upon a time in a hilly land. " * 6
    for number in range(NUM_STREAMS)
]


def slow_node(folder, model):
    """Engines so slow that a stream outlives any drain of it."""
    return daemon(folder, str(model), *SIMULATED, "--speedup", "0.1")


def test_a_drained_workers_streams_go_on_elsewhere_at_once(tiny_model, tmp_path, record_property):
    with slow_node(tmp_path, tiny_model) as node:
        model = node.wait_ready().model
        calm = [Stream(node, model, prompt, max_tokens=NUM_TOKENS) for prompt in PROMPTS]
        expected = [stream.end()[:2] for stream in calm]
        before = node.status().requests
        streams = [Stream(node, model, prompt, max_tokens=NUM_TOKENS) for prompt in PROMPTS]
        for stream in streams:
            stream.wait_for(10)
        name = busy_workers(node.status())[0]
        assert node.command(DrainRequest(worker=name)).error is None
        at_its_end = [len(stream.tokens) for stream in streams]
        assert not any(stream.finish for stream in streams)
        assert [stream.end()[:2] for stream in streams] == expected
        after = node.status().requests
        moved = after.resumed_requests - before.resumed_requests
        gap_s = max(stream.longest_gap_s for stream in streams)
        calm_gap_s = max(stream.longest_gap_s for stream in calm)
        record_property(
            "drain",
            f"{moved} of {NUM_STREAMS} streams moved, with at most {max(at_its_end)} of"
            f" {NUM_TOKENS} tokens sent; longest gap {gap_s * 1e3:.0f} ms, without a drain"
            f" {calm_gap_s * 1e3:.0f} ms",
        )
        assert moved > 0
        assert after.failed_requests == before.failed_requests


def test_a_worker_restarted_under_load_comes_back_and_ends_no_stream(tiny_model, tmp_path):
    with slow_node(tmp_path, tiny_model) as node:
        model = node.wait_ready().model
        streams = [Stream(node, model, prompt, max_tokens=NUM_TOKENS) for prompt in PROMPTS[:8]]
        for stream in streams:
            stream.wait_for(10)
        name = busy_workers(node.status())[0]
        assert node.command(RestartRequest(worker=name)).error is None
        assert not any(stream.finish for stream in streams)
        assert all(len(stream.end()[0]) == NUM_TOKENS for stream in streams)
        assert node.status().state == "ready"

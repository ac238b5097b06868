"""A worker that is drained while it streams gives its requests to others."""

import itertools
import random
import threading

import pytest

from nodeserve.wire.control import DrainRequest, RestartRequest, RoleRequest
from nodeserve.wire.kinds import Role
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


def test_restarts_and_changes_of_role_in_the_middle_of_everything_lose_nothing(
    tiny_model, tmp_path, record_property
):
    """Streams come and go while workers do, in an order that a seed decides."""
    chosen = random.Random(5)
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "0.3") as node:
        model = node.wait_ready().model
        prompts = [PROMPTS[number] * (1 + number % 4) for number in range(12)]
        expected = [Stream(node, model, prompt, max_tokens=100).end()[:2] for prompt in prompts]
        over = threading.Event()
        outcomes = []

        def keep_asking(first: int) -> None:
            for turn in itertools.count(first):
                number = turn % len(prompts)
                stream = Stream(node, model, prompts[number], max_tokens=100)
                stream.thread.join(120)
                outcomes.append((stream.tokens, stream.finish) == expected[number])
                if over.is_set():
                    return

        clients = [threading.Thread(target=keep_asking, args=(number,)) for number in range(8)]
        for client in clients:
            client.start()
        for _ in range(40):
            worker = chosen.choice(["prefill-0", "prefill-1", "decode-0", "decode-1"])
            wish = chosen.choice(
                [
                    RestartRequest(worker=worker),
                    RestartRequest(worker=worker, immediately=True),
                    RoleRequest(worker=worker, role=chosen.choice(list(Role)), force=True),
                ]
            )
            assert node.command(wish).error is None
        over.set()
        for client in clients:
            client.join(120)
        requests = node.status().requests
        record_property(
            "turmoil",
            f"{len(outcomes)} streams over 40 restarts and changes of role,"
            f" {requests.resumed_requests} times one went on elsewhere",
        )
        assert len(outcomes) >= len(clients)
        assert all(outcomes)
        assert (requests.failed_requests, requests.running_requests) == (0, 0)
        assert requests.resumed_requests > 0

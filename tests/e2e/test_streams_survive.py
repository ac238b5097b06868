"""A client's stream goes on when the worker behind it dies: no token twice, none missing."""

import signal
import threading

import pytest

from nodeserve.wire.control import DrainRequest, RestartRequest
from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import PROMPTS, Stream, busy_workers
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]


@pytest.fixture(scope="module")
def node(tiny_model, tmp_path_factory):
    """Slow engines, so that a stream can be met in its middle."""
    folder = tmp_path_factory.mktemp("n")
    with daemon(folder, str(tiny_model), *SIMULATED, "--speedup", "0.1") as running:
        yield running.wait_ready()


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 11, "top_p": 0.9},
        {"temperature": 0, "presence_penalty": 1.1, "frequency_penalty": 1.5},
        {"temperature": 0, "repetition_penalty": 1.3, "min_tokens": 150},
        {"temperature": 0, "structured_outputs": {"regex": "([0-9]{3}-[a-f]{4} ){20}"}},
    ],
    ids=["greedy", "seeded", "penalties", "repetition", "grammar"],
)
def test_real_engines_go_on_with_each_others_streams(four, more):
    model = four.model
    asked = {"max_tokens": 200, "cache_salt": str(more)} | more
    expected = Stream(four, model, PROMPTS[0], **asked).end()
    before = four.status().requests.resumed_requests
    stream = Stream(four, model, PROMPTS[0], **asked)
    stream.wait_for(30)
    four.kill(busy_workers(four.status())[0])
    tokens, finish, usage = stream.end()
    assert (tokens, finish) == expected[:2]
    assert usage["completion_tokens"] == expected[2]["completion_tokens"]
    assert four.status().requests.resumed_requests == before + 1
    four.wait_until(lambda status: status.state == "ready")


def test_a_worker_restarted_at_once_ends_no_stream(four):
    model = four.model
    asked = {"max_tokens": 300, "temperature": 0, "cache_salt": "restart"}
    expected = Stream(four, model, PROMPTS[1], **asked).end()[:2]
    stream = Stream(four, model, PROMPTS[1], **asked)
    stream.wait_for(30)
    name = busy_workers(four.status())[0]
    assert four.command(RestartRequest(worker=name, immediately=True)).error is None
    assert stream.end()[:2] == expected


def test_a_stream_of_an_engine_that_is_told_to_end_goes_on_elsewhere(four):
    """By a signal of somebody's own: vLLM then reports what runs as aborted."""
    model = four.model
    asked = {"max_tokens": 300, "temperature": 0, "cache_salt": "told"}
    expected = Stream(four, model, PROMPTS[2], **asked).end()[:2]
    stream = Stream(four, model, PROMPTS[2], **asked)
    stream.wait_for(30)
    four.kill(busy_workers(four.status())[0], signal.SIGTERM)
    assert stream.end()[:2] == expected
    assert four.status().requests.recent[-1].finish == "length"
    four.wait_until(lambda status: status.state == "ready")


def test_real_engines_take_over_what_a_drained_one_generates(four):
    model = four.model
    more = {"max_tokens": 300, "temperature": 0, "cache_salt": "drain"}
    expected = [Stream(four, model, prompt, **more).end()[:2] for prompt in PROMPTS[:4]]
    streams = [Stream(four, model, prompt, **more) for prompt in PROMPTS[:4]]
    for stream in streams:
        stream.wait_for(20)
    name = busy_workers(four.status())[0]
    assert four.command(DrainRequest(worker=name)).error is None
    assert [stream.end()[:2] for stream in streams] == expected
    assert any(trace.resumed for trace in four.status().requests.recent[-4:])
    assert four.command(RestartRequest(worker=name)).error is None
    four.wait_until(lambda status: status.state == "ready")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "crashed"])
def test_streams_of_a_dead_worker_go_on_where_they_stopped(node, number, record_property):
    model = node.model
    calm = [Stream(node, model, prompt, max_tokens=60) for prompt in PROMPTS]
    expected = [stream.end()[:2] for stream in calm]
    before = node.status().requests
    streams = [Stream(node, model, prompt, max_tokens=60) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(10)
    node.kill(busy_workers(node.status())[0], number)
    assert [stream.end()[:2] for stream in streams] == expected
    after = node.status().requests
    assert after.resumed_requests > before.resumed_requests
    gap_s, calm_gap_s = (max(s.longest_gap_s for s in some) for some in (streams, calm))
    record_property(
        "loss",
        f"{after.resumed_requests - before.resumed_requests} of {len(streams)} streams went on"
        f" elsewhere; longest gap {gap_s * 1e3:.0f} ms, without a loss {calm_gap_s * 1e3:.0f} ms",
    )
    assert after.failed_requests == before.failed_requests
    node.wait_until(lambda status: status.state == "ready")


def test_a_seeded_sample_goes_on_as_if_nothing_had_happened(node):
    model = node.model
    more = {"max_tokens": 60, "seed": 7, "temperature": 1.0}
    expected = Stream(node, model, PROMPTS[0], **more).end()[:2]
    stream = Stream(node, model, PROMPTS[0], **more)
    stream.wait_for(20)
    node.kill(busy_workers(node.status())[0])
    assert stream.end()[:2] == expected
    node.wait_until(lambda status: status.state == "ready")


def test_an_answer_that_is_not_streamed_is_whole_too(node):
    body = {"max_tokens": 60, "ignore_eos": True, "return_token_ids": True}
    expected = node.complete(PROMPTS[1], **body)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(node.complete(PROMPTS[1], **body)))
    asking.start()
    status = node.wait_until(
        lambda status: any(
            load.running and load.role == "decode" for load in status.requests.workers
        )
    )
    node.kill(busy_workers(status)[0])
    asking.join(120)
    assert answers[0]["choices"][0]["token_ids"] == expected["choices"][0]["token_ids"]
    assert answers[0]["usage"] == expected["usage"]
    node.wait_until(lambda status: status.state == "ready")

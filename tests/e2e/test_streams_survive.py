"""A client's stream goes on when the worker behind it dies: no token twice, none missing."""

import json
import signal
import threading

import pytest

from nodeserve.wire.control import RestartRequest
from tests.e2e.conftest import SIMULATED
from tests.support.daemon import Daemon, daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

PROMPTS = [
    f"Story number {number}. " + "Once upon a time in a hilly land. " * 6 for number in range(8)
]


class Stream:
    """One streamed completion, read in a thread: the tokens so far and how it ended."""

    def __init__(self, node: Daemon, model: str, prompt: str, **more: object) -> None:
        self.tokens: list[int] = []
        self.finish: str | None = None
        self.usage: dict[str, int] = {}
        self.grew = threading.Condition()
        body = {"model": model, "prompt": prompt, "stream": True, "ignore_eos": True}
        body |= {"stream_options": {"include_usage": True}, "return_token_ids": True} | more
        self.thread = threading.Thread(target=self._read, args=(node, body))
        self.thread.start()

    def _read(self, node: Daemon, body: dict[str, object]) -> None:
        with node.client.stream("POST", "/v1/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self._take(json.loads(line[6:]))
        with self.grew:
            self.finish = self.finish or "cut off"
            self.grew.notify_all()

    def _take(self, event: dict) -> None:
        with self.grew:
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices", []):
                self.tokens += choice.get("token_ids") or []
                self.finish = choice.get("finish_reason") or self.finish
            self.grew.notify_all()

    def wait_for(self, num_tokens: int) -> None:
        with self.grew:
            assert self.grew.wait_for(lambda: len(self.tokens) >= num_tokens or self.finish, 60)

    def end(self) -> tuple[list[int], str | None, dict[str, int]]:
        self.thread.join(120)
        assert self.finish in {"length", "stop"}
        assert self.usage["completion_tokens"] == len(self.tokens)
        return self.tokens, self.finish, self.usage


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
    four.kill(decoders_of(four.status())[0])
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
    name = decoders_of(four.status())[0]
    assert four.command(RestartRequest(worker=name, immediately=True)).error is None
    assert stream.end()[:2] == expected


def decoders_of(status):
    """The names of the workers that have requests running."""
    busy = {load.generation for load in status.requests.workers if load.running}
    return [p.name for p in status.processes if p.generation in busy and p.name != "supervisor"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "crashed"])
def test_streams_of_a_dead_worker_go_on_where_they_stopped(node, number):
    model = node.model
    calm = [Stream(node, model, prompt, max_tokens=60) for prompt in PROMPTS]
    expected = [stream.end()[:2] for stream in calm]
    before = node.status().requests
    streams = [Stream(node, model, prompt, max_tokens=60) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(10)
    node.kill(decoders_of(node.status())[0], number)
    assert [stream.end()[:2] for stream in streams] == expected
    after = node.status().requests
    assert after.resumed_requests > before.resumed_requests
    assert after.failed_requests == before.failed_requests
    node.wait_until(lambda status: status.state == "ready")


def test_a_seeded_sample_goes_on_as_if_nothing_had_happened(node):
    model = node.model
    more = {"max_tokens": 60, "seed": 7, "temperature": 1.0}
    expected = Stream(node, model, PROMPTS[0], **more).end()[:2]
    stream = Stream(node, model, PROMPTS[0], **more)
    stream.wait_for(20)
    node.kill(decoders_of(node.status())[0])
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
    node.kill(decoders_of(status)[0])
    asking.join(120)
    assert answers[0]["choices"][0]["token_ids"] == expected["choices"][0]["token_ids"]
    assert answers[0]["usage"] == expected["usage"]
    node.wait_until(lambda status: status.state == "ready")

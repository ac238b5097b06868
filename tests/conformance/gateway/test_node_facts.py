"""What a client does to the node: disconnects, counts, caches, and memory it may not name."""

import json
import socket
import time
from collections.abc import Callable

import pytest

from tests.conformance.gateway.answers import differences, stable
from tests.conformance.gateway.node import Node

pytestmark = pytest.mark.vllm

SETTLE_S = 10.0


def becomes_true(is_so: Callable[[], bool]) -> bool:
    until_s = time.monotonic() + SETTLE_S
    while not is_so():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.05)
    return True


STORY = {
    "prompt": "A long story that nobody waits for begins",
    "max_tokens": 1900,
    "ignore_eos": True,
}


def test_a_client_that_leaves_its_stream_stops_the_engine(node: Node) -> None:
    before = node.metric("vllm:generation_tokens_total")
    body = STORY | {"model": node.model, "stream": True}

    with node.client.stream("POST", "/v1/completions", json=body) as response:
        first = next(response.iter_lines())

    assert first.startswith("data: ")
    assert becomes_true(lambda: _running(node) == 0)
    assert node.metric("vllm:generation_tokens_total") - before < 1500
    assert node.works()


def test_a_client_that_leaves_before_the_answer_stops_the_engine(node: Node) -> None:
    before = node.metric("vllm:generation_tokens_total")
    body = json.dumps(STORY | {"model": node.model}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\n"

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(node.socket))
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert becomes_true(lambda: _running(node) > 0)

    assert becomes_true(lambda: _running(node) == 0)
    assert node.metric("vllm:generation_tokens_total") - before < 1500
    assert node.works()


def _running(node: Node) -> int:
    """Return what runs or waits, as the dispatcher and as each engine sees it."""
    requests = node.status()["requests"]
    engines = sum(worker["running"] + worker["waiting"] for worker in requests["workers"])
    return int(requests["running_requests"] + requests["queued_requests"] + engines)


def test_a_prompts_tokens_are_counted_once(node: Node) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    body = {"prompt": "Count each of my bytes, and count them once", "max_tokens": 7}
    before = [node.metric(name) for name in names]

    _, answer = node.send("/v1/completions", body | {"ignore_eos": True})

    counted = [node.metric(name) - was for name, was in zip(names, before, strict=True)]
    assert counted == [answer["usage"]["prompt_tokens"], 7]


def test_a_prompt_asked_twice_is_cached_the_second_time(node: Node) -> None:
    body = {"prompt": "Remember this long prompt well. " * 8, "max_tokens": 4, "temperature": 0}

    _, first = node.send("/v1/completions", body)
    _, second = node.send("/v1/completions", body)

    assert [cached(first), cached(second)] == [0, 224]
    assert first["choices"][0]["text"] == second["choices"][0]["text"]


def cached(answer: dict[str, dict[str, dict[str, int]]]) -> int:
    details = answer["usage"]["prompt_tokens_details"] or {}
    return int(details.get("cached_tokens", 0))


HOSTILE = (
    {"do_remote_prefill": True, "engine": 1, "lease_id": 1, "num_tokens": 40, "num_bytes": 1},
    {"do_remote_decode": True},
    {"do_remote_prefill": True, "remote_block_ids": [0, 1, 2], "remote_engine_id": "x"},
)


@pytest.mark.parametrize("params", HOSTILE, ids=["read", "lease", "nixl"])
def test_a_client_never_names_memory(node: Node, params: dict[str, object]) -> None:
    body = {"prompt": "An ordinary prompt of an ordinary client", "max_tokens": 6, "temperature": 0}
    _, wanted = node.send("/v1/completions", body)

    status, answer = node.send("/v1/completions", body | {"kv_transfer_params": params})

    assert status == 200
    assert answer.get("kv_transfer_params") is None
    assert differences(stable(answer["choices"]), stable(wanted["choices"])) == []
    assert node.works()


def test_prefill_and_decode_really_share_the_work(node: Node) -> None:
    before = node.status()["requests"].get("handoffs", {}).get("completed", 0)

    node.send("/v1/completions", {"prompt": "Prefill here and decode there. " * 5, "max_tokens": 3})

    after = node.status()["requests"].get("handoffs", {}).get("completed", 0)
    assert after - before == (1 if node.layout == "1p1d" else 0)


def test_a_seed_gives_the_same_answer_again(node: Node) -> None:
    body = {"prompt": "Throw the dice for me twice, will you?", "max_tokens": 12, "seed": 77}

    answers = [node.send("/v1/completions", body)[1]["choices"][0]["text"] for _ in range(2)]
    other = node.send("/v1/completions", body | {"seed": 78})[1]["choices"][0]["text"]

    assert answers[0] == answers[1] != other

"""Bad requests get the front end's own 4xx, and the node goes on."""

import json

import pytest

from nodeserve.config.node import GatewayKind
from tests.conformance.gateway.node import Node

pytestmark = pytest.mark.vllm

COMPLETION = {"prompt": "A prompt with nothing wrong in it", "max_tokens": 3}

BAD_VALUES = {
    "prompt too long": {"prompt": "far too long " * 400},
    "unknown model": {"model": "nobody-knows-it"},
    "n is negative": {"n": -1},
    "n is absurd": {"n": 10**9},
    "n is beyond 64 bits": {"n": 10**20},
    "max_tokens is negative": {"max_tokens": -1},
    "max_tokens is zero": {"max_tokens": 0},
    "max_tokens is absurd": {"max_tokens": 10**12},
    "max_tokens is beyond 64 bits": {"max_tokens": 10**30},
    "logprobs are absurd": {"logprobs": 10**6},
    "logprobs are negative": {"logprobs": -5},
    "temperature is negative": {"temperature": -3},
    "top_p is above 1": {"top_p": 9},
    "an empty stop string": {"stop": [""]},
    "a seed that is no number": {"seed": "x"},
    "no prompt": {"prompt": []},
    "an empty prompt": {"prompt": ""},
    "a negative token": {"prompt": [-1]},
    "a token beyond the vocabulary": {"prompt": [10**9]},
    "min_tokens above max_tokens": {"min_tokens": 9999},
}


@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_a_bad_value_is_refused_and_the_node_goes_on(node: Node, bad: dict[str, object]) -> None:
    status, answer = node.send("/v1/completions", COMPLETION | bad)

    assert 400 <= status < 500, answer
    assert node.works()


BAD_BODIES = {
    "malformed JSON": b'{"model":',
    "bad UTF-8": b'{"model":"m","prompt":"\xff\xfe"}',
    "nothing": b"",
    "another type": b"[1, 2]",
    "nested too deeply": b"[" * 100_000,
    "NUL bytes": b"\x00" * 64,
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_that_is_no_request_is_refused_and_the_node_goes_on(
    node: Node, path: str, body: bytes
) -> None:
    headers = {"content-type": "application/json"}

    answer = node.client.post(path, content=body, headers=headers)

    assert 400 <= answer.status_code < 500, answer.text
    assert node.works()


def test_a_path_or_method_nobody_knows_is_refused(node: Node) -> None:
    assert node.client.get("/no/such/path").status_code == 404
    assert node.client.get("/v1/completions").status_code == 405


def test_a_grammar_that_does_not_compile_fails_alone(node: Node) -> None:
    """vllm-rs 0.32 does not look at grammars, so there it is the engine that refuses."""
    status, answer = node.send(
        "/v1/completions", COMPLETION | {"structured_outputs": {"regex": "(("}}
    )

    assert status == (400 if node.gateway is GatewayKind.PYTHON else 500), answer
    assert node.works()


def test_an_image_is_refused_by_a_model_that_cannot_see(node: Node) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = {"messages": [{"role": "user", "content": [image]}], "max_tokens": 3}

    status, answer = node.send("/v1/chat/completions", body)

    assert 400 <= status < 500, json.dumps(answer)
    assert node.works()

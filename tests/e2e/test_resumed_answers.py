"""Whatever a client asks for, its answer goes on when the worker behind it dies.

All of it is asked at the same time, through both gateways, and one kill hits all of it.
"""

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final

import httpx
import pytest

from tests.conformance.gateway.answers import differences, events, gist
from tests.conformance.gateway.capabilities import STREAM
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

CONFIG: Final = """
[[workers]]
role = "prefill"
count = 1
[[workers]]
role = "decode"
count = 1
[router]
local_prefill_tokens = 0
[[listener]]
name = "python"
gateway = "python"
[[listener]]
name = "rust"
gateway = "rust"
socket = "{folder}/rust.sock"
[engine.args]
dtype = "float32"
max_model_len = 2048
block_size = 32
max_num_seqs = 64
kv_cache_memory_bytes = 134217728
"""
TOKENS: Final = 160
LONG: Final = {"max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
DICE: Final = LONG | {"temperature": 1.0, "seed": 11}
SCHEMA: Final = {
    "type": "object",
    "properties": {f"part{n}": {"enum": ["forward", "backward", "at rest"]} for n in range(9)},
    "required": [f"part{n}" for n in range(9)],
    "additionalProperties": False,
}
AS_JSON: Final = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
    "max_tokens": 400,
    "temperature": 0,
}
TOOL: Final = {"type": "function", "function": {"name": "move", "parameters": SCHEMA}}
NAMED: Final = {
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "move"}},
    "max_tokens": 400,
    "temperature": 0,
}
COMPLETIONS: Final[dict[str, dict[str, Any]]] = {
    "greedy": LONG,
    "seed": DICE | STREAM | {"top_p": 0.9, "top_k": 40},
    "logprobs, whole": LONG | {"logprobs": 2},
    "logprobs, streaming": DICE | STREAM | {"logprobs": 2},
    "penalties": LONG | {"presence_penalty": 1.1, "frequency_penalty": 1.3},
    "repetition": DICE | {"repetition_penalty": 1.3, "logit_bias": {"70": 2}},
    "min_tokens": LONG | {"ignore_eos": False, "min_tokens": TOKENS - 20},
    "min_tokens and stop token": LONG | STREAM | {"min_tokens": 80, "stop_token_ids": [70, 71]},
    "regex, streaming": LONG
    | STREAM
    | {"ignore_eos": False, "structured_outputs": {"regex": "([0-9]{3}-[a-f]{4} ){18}"}},
}
CHATS: Final[dict[str, dict[str, Any]]] = {
    "chat logprobs, streaming": LONG | STREAM | {"logprobs": True, "top_logprobs": 2},
    "JSON schema": AS_JSON,
    "JSON schema, streaming": AS_JSON | STREAM,
    "named tool": NAMED,
    "named tool, streaming": NAMED | STREAM,
    "required tool, streaming": NAMED | STREAM | {"tool_choice": "required"},
}
PYTHON_ONLY: Final[dict[str, dict[str, Any]]] = {
    "n=3": DICE | {"n": 3},
    "n=3, streaming": DICE | STREAM | {"n": 3, "logprobs": 1},
}


class Asked:
    """All requests at once; ``begun`` is set when each stream has some twenty pieces."""

    def __init__(self, clients: dict[str, httpx.Client], model: str, stop: str) -> None:
        self.model = model
        self.begun = threading.Event()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(64)
        cases = [
            (gateway, name, body)
            for gateway in clients
            for name, body in requests(gateway, stop).items()
        ]
        self._streaming = {case[:2] for case in cases if case[2].get("stream")}
        self.answers: dict[tuple[str, str], Future[Any]] = {
            (gateway, name): self._pool.submit(self._ask, clients[gateway], gateway, name, body)
            for gateway, name, body in cases
        }

    def _ask(self, client: httpx.Client, gateway: str, name: str, body: dict[str, Any]) -> Any:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        num_lines, lines = 0, []
        with client.stream("POST", path, json={"model": self.model} | body) as response:
            for line in response.iter_lines():
                lines.append(line)
                num_lines += line.startswith("data: ")
                if num_lines == 20:
                    with self._lock:
                        self._streaming.discard((gateway, name))
                        if not self._streaming:
                            self.begun.set()
        text = "\n".join(lines)
        assert response.status_code == 200, text
        return list(events(text)) if body.get("stream") else json.loads(text)

    def ends(self) -> dict[tuple[str, str], Any]:
        wait(self.answers.values(), timeout=200)
        self._pool.shutdown()
        return {case: gist(answer.result()) for case, answer in self.answers.items()}


def requests(gateway: str, stop: str) -> dict[str, dict[str, Any]]:
    """The bodies of all requests of one gateway, by name; no two begin alike."""
    completions = COMPLETIONS | {"stop string": LONG | STREAM | {"stop": [stop]}}
    completions |= PYTHON_ONLY if gateway == "python" else {}
    made = {name: {"prompt": prompt_of(name)} | body for name, body in completions.items()}
    for name, body in CHATS.items():
        made[name] = {"messages": [{"role": "user", "content": prompt_of(name)}]} | body
    return made


def prompt_of(name: str) -> str:
    return f"{name}: once upon a time in a hilly land, " * 3


def rare_piece(text: str) -> str:
    """Three characters that show for the first time late in a text."""
    pieces = ((place, text[place : place + 3]) for place in range(100, len(text) - 10))
    return next(
        piece for place, piece in pieces if piece.isprintable() and text.find(piece) == place
    )


def test_answers_of_every_kind_go_on_at_another_engine(tiny_model, tmp_path, record_property):
    config = tmp_path / "node.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    words = (str(tiny_model), "--config", str(config), "--", "--tool-call-parser", "hermes")
    with daemon(tmp_path, *words) as node:
        node.wait_ready()
        rust = httpx.HTTPTransport(uds=str(tmp_path / "rust.sock"))
        clients = {
            "python": node.client,
            "rust": httpx.Client(transport=rust, base_url="http://node", timeout=120),
        }
        whole = node.complete(prompt_of("stop string"), max_tokens=TOKENS, ignore_eos=True)
        stop = rare_piece(whole["choices"][0]["text"])
        expected = Asked(clients, node.model, stop).ends()
        before = node.status().requests
        asked = Asked(clients, node.model, stop)
        assert asked.begun.wait(120)
        node.kill("decode-0")
        answers = asked.ends()
        after = node.status().requests
        resumed = after.resumed_requests - before.resumed_requests
        clients["rust"].close()
        found = {case: differences(expected[case], answers[case]) for case in expected}
        assert {case: where for case, where in found.items() if where} == {}
        record_property("resumed", f"{resumed} requests of {len(answers)} kinds, all equal")
        assert resumed >= len(answers)
        assert after.failed_requests == before.failed_requests

"""What clients ask of a gateway: one request each, and which gateways refuse it.

The suite holds both gateways to this list, and ``docs/gateways.md`` shows it as a table.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from nodeserve.config.node import GatewayKind
from tests.conformance.gateway.answers import gist

BOTH: Final = frozenset(GatewayKind)
PYTHON: Final = frozenset({GatewayKind.PYTHON})

Body = dict[str, Any]


def _nothing(answer: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing a client asks for.

    Attributes:
        group: Part of the table.
        name: Row of the table.
        path: Where the request goes; a GET when there is no body.
        body: The request, without the model's name.
        gateways: Who can do it; the others answer 4xx.
        holds: What must be true of the answer (of a stream: of its events).
    """

    group: str
    name: str
    path: str
    body: Body | None = None
    gateways: frozenset[GatewayKind] = BOTH
    holds: Callable[[Any], bool] = field(default=_nothing, compare=False)

    @property
    def generates(self) -> bool:
        """Whether the answer is generated text, which a gist can be made of."""
        return self.body is not None and "/v1/" in self.path


def _completion(prompt: Any, **more: Any) -> Body:
    return {"prompt": prompt, "max_tokens": 12, "temperature": 0} | more


def _chat(content: str, **more: Any) -> Body:
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": 12, "temperature": 0} | more


def texts(answer: Any) -> list[str]:
    """Return each choice's text."""
    return [choice["text"] for choice in gist(answer)["choices"]]


def ends(answer: Any) -> list[str]:
    """Return each choice's finish reason."""
    return [choice["end"] for choice in gist(answer)["choices"]]


def called(answer: Any) -> list[str]:
    """Return the names of the tools that the first choice calls."""
    return [call["name"] for call in gist(answer)["choices"][0]["calls"]]


def _has_logprobs(answer: Any) -> bool:
    choice = gist(answer)["choices"][0]
    return len(choice["logprobs"]) == 12 and all(value <= 0 for value in choice["logprobs"])


STREAM: Final = {"stream": True, "stream_options": {"include_usage": True}}
SCHEMA: Final = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
AS_JSON: Final = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
    "max_tokens": 80,
}
TOOL: Final = {
    "type": "function",
    "function": {"name": "weather", "strict": True, "parameters": SCHEMA},
}
FORCED: Final = {
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "max_tokens": 160,
}

CAPABILITIES: Final = (
    Capability(
        "completions",
        "one prompt",
        "/v1/completions",
        _completion("The first thing to know about ships is that"),
        holds=lambda answer: ends(answer) == ["length"],
    ),
    Capability(
        "completions",
        "streaming",
        "/v1/completions",
        _completion("The second thing to know about ships is that", **STREAM),
        holds=lambda answer: gist(answer)["completion_tokens"] == 12,
    ),
    Capability(
        "completions",
        "token ids as prompt",
        "/v1/completions",
        _completion([40 + 7 * number % 85 for number in range(70)]),
        holds=lambda answer: gist(answer)["prompt_tokens"] == 70,
    ),
    Capability(
        "completions",
        "`echo`",
        "/v1/completions",
        _completion("An echo of forty characters is as follows", echo=True),
        holds=lambda answer: texts(answer)[0].startswith("An echo of forty"),
    ),
    Capability(
        "completions",
        "`logprobs`",
        "/v1/completions",
        _completion("How probable is each of the next tokens here", logprobs=3),
        holds=_has_logprobs,
    ),
    Capability(
        "completions",
        "`prompt_logprobs`",
        "/v1/completions",
        _completion("How probable is each token of this prompt", prompt_logprobs=2),
        holds=lambda answer: len(answer["choices"][0]["prompt_logprobs"]) == 41,
    ),
    Capability(
        "completions",
        "`seed`",
        "/v1/completions",
        _completion("Dice are thrown again and again, and they show", temperature=1, seed=11),
    ),
    Capability(
        "completions",
        "`stop` strings",
        "/v1/completions",
        _completion("Stop as soon as some byte shows that is common", max_tokens=400, stop=["e"]),
        holds=lambda answer: ends(answer) == ["stop"],
    ),
    Capability(
        "completions",
        "penalties, `logit_bias`, `min_tokens`",
        "/v1/completions",
        _completion(
            "Again and again and again and again and again and",
            frequency_penalty=1.5,
            presence_penalty=0.5,
            repetition_penalty=1.2,
            logit_bias={"70": 3},
            min_tokens=8,
        ),
    ),
    Capability(
        "completions",
        "`n=3`",
        "/v1/completions",
        _completion("Three ways to go on from here, each its own", n=3, temperature=1, seed=5),
        PYTHON,
        holds=lambda answer: len(set(texts(answer))) == 3,
    ),
    Capability(
        "completions",
        "a list of prompts",
        "/v1/completions",
        _completion(["One prompt of two in a list", "Another prompt of two in a list"]),
        PYTHON,
        holds=lambda answer: len(texts(answer)) == 2,
    ),
    Capability(
        "completions",
        "beam search",
        "/v1/completions",
        _completion("A beam of light goes through the dark", use_beam_search=True, n=2),
        PYTHON,
        holds=lambda answer: len(texts(answer)) == 2,
    ),
    Capability(
        "chat", "one conversation", "/v1/chat/completions", _chat("Say something of the sea")
    ),
    Capability(
        "chat",
        "streaming",
        "/v1/chat/completions",
        _chat("Say something of the mountains, slowly", **STREAM),
        holds=lambda answer: gist(answer)["completion_tokens"] == 12,
    ),
    Capability(
        "chat",
        "`logprobs`, `top_logprobs`",
        "/v1/chat/completions",
        _chat("Say something of probability to me", logprobs=True, top_logprobs=4),
        holds=_has_logprobs,
    ),
    Capability(
        "chat",
        "`n=3`",
        "/v1/chat/completions",
        _chat("Say something in three ways, please", n=3, temperature=1, seed=3),
        PYTHON,
        holds=lambda answer: len(set(texts(answer))) == 3,
    ),
    Capability(
        "chat",
        "JSON schema",
        "/v1/chat/completions",
        _chat("Is it fine? Answer in JSON as I told you", **AS_JSON),
        holds=lambda answer: '"ok"' in texts(answer)[0] and ends(answer) == ["stop"],
    ),
    Capability(
        "chat",
        "JSON schema, streaming",
        "/v1/chat/completions",
        _chat("Is it fine now? Answer in JSON as I told you", **AS_JSON, **STREAM),
        holds=lambda answer: '"ok"' in texts(answer)[0],
    ),
    Capability(
        "chat",
        "regular expression (`structured_outputs`)",
        "/v1/chat/completions",
        _chat(
            "Give me a serial number of the usual form", structured_outputs={"regex": "[A-F]{6}"}
        ),
        holds=lambda answer: len(texts(answer)[0]) == 6,
    ),
    Capability(
        "chat",
        "forced tool call",
        "/v1/chat/completions",
        _chat("What is the weather? Ask the tool for it", **FORCED),
        holds=lambda answer: called(answer) == ["weather"],
    ),
    Capability(
        "chat",
        "forced tool call, streaming",
        "/v1/chat/completions",
        _chat("What will the weather be? Ask the tool", **FORCED, **STREAM),
        holds=lambda answer: called(answer) == ["weather"],
    ),
    Capability(
        "chat",
        '`tool_choice="required"`',
        "/v1/chat/completions",
        _chat("What was the weather? Ask some tool for it", **FORCED | {"tool_choice": "required"}),
        holds=lambda answer: called(answer)[0] == "weather",
    ),
    Capability(
        "chat",
        '`tool_choice="auto"`',
        "/v1/chat/completions",
        _chat("Talk to me, or ask the tool, as you please", tools=[TOOL]),
    ),
    Capability(
        "other APIs",
        "Responses",
        "/v1/responses",
        {"input": "Say something of rivers", "max_output_tokens": 12, "temperature": 0},
        PYTHON,
    ),
    Capability(
        "other APIs",
        "Responses, streaming",
        "/v1/responses",
        {
            "input": "Say something of lakes",
            "max_output_tokens": 12,
            "temperature": 0,
            "stream": True,
        },
        PYTHON,
    ),
    Capability(
        "other APIs",
        "Anthropic Messages",
        "/v1/messages",
        _chat("Say something of the desert to a traveller"),
        PYTHON,
    ),
    Capability(
        "other APIs",
        "Anthropic Messages, streaming",
        "/v1/messages",
        _chat("Say something of the forest to a traveller", stream=True),
        PYTHON,
    ),
    Capability("node", "`/v1/models`", "/v1/models"),
    Capability("node", "`/tokenize`", "/tokenize", {"prompt": "Twelve bytes"}),
    Capability("node", "`/detokenize`", "/detokenize", {"tokens": [74, 71, 78, 78, 81]}),
    Capability("node", "`/health`", "/health"),
    Capability("node", "`/ping`", "/ping", gateways=PYTHON),
    Capability("node", "`/version`", "/version"),
    Capability("node", "`/metrics`", "/metrics"),
    Capability(
        "not with a generative model",
        "embeddings",
        "/v1/embeddings",
        {"input": "Nothing to embed"},
        frozenset(),
    ),
)

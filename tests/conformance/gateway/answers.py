"""What an answer says, without the ids and times that differ between any two requests."""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

VOLATILE: Final = frozenset(
    {
        "call_id",
        "completed_at",
        "created",
        "created_at",
        "id",
        "item_id",
        "owned_by",
        "permission",
        "request_id",
        "system_fingerprint",
    }
)
LOGPROB_TOLERANCE: Final = 1e-3
"""A prompt's last token is computed alone after a handoff, which moves the last bits."""


def stable(value: Any) -> Any:
    """Return ``value`` without volatile keys, at any depth."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [stable(item) for item in value]
    return value


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Return where two answers differ; numbers may differ by ``LOGPROB_TOLERANCE``."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            difference
            for key in sorted(one.keys() | other.keys())
            for difference in differences(one.get(key), other.get(key), f"{path}.{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            difference
            for place, (left, right) in enumerate(zip(one, other, strict=True))
            for difference in differences(left, right, f"{path}[{place}]")
        ]
    if isinstance(one, float) and isinstance(other, float):
        close = math.isclose(one, other, rel_tol=LOGPROB_TOLERANCE, abs_tol=LOGPROB_TOLERANCE)
        return [] if close else [f"{path}: {one} != {other}"]
    return [] if one == other else [f"{path}: {one!r} != {other!r}"]


def events(body: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON events of a server-sent event stream."""
    for line in body.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def gist(answer: Any) -> dict[str, Any]:
    """Return what a generation says in any of the APIs: texts, calls, ends and usage.

    Takes a whole answer or the list of a stream's events, so that the two can be compared.
    """
    if isinstance(answer, list):
        return _gist_of_stream(answer)
    usage = answer.get("usage") or {}
    if "choices" in answer:
        return {"choices": [_choice(choice) for choice in answer["choices"]]} | _usage(usage)
    if "output" in answer:
        texts = [part["text"] for item in answer["output"] for part in item.get("content") or []]
        return {"texts": texts, "end": answer["status"]} | _usage(usage)
    texts = [part["text"] for part in answer["content"]]
    return {"texts": texts, "end": answer["stop_reason"]} | _usage(usage)


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
        "completion_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
    }


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    said = choice.get("message") or choice
    calls = [call["function"] for call in said.get("tool_calls") or []]
    return {
        "text": _whole_characters(said.get("content") or said.get("text") or ""),
        "calls": [
            {"name": call["name"], "arguments": _parsed(call["arguments"])} for call in calls
        ],
        "end": choice["finish_reason"],
        "logprobs": _logprobs(choice.get("logprobs")),
    }


def _logprobs(logprobs: dict[str, Any] | None) -> list[float | None]:
    if not logprobs:
        return []
    if "token_logprobs" in logprobs:
        return list(logprobs["token_logprobs"])
    return [token["logprob"] for token in logprobs.get("content") or []]


def _gist_of_stream(stream: list[dict[str, Any]]) -> dict[str, Any]:
    if any("choices" in event for event in stream):
        return _gist_of_chunks(stream)
    texts = [_delta_text(event) for event in stream]
    return {"texts": ["".join(texts)]} | _last_words(stream)


def _delta_text(event: dict[str, Any]) -> str:
    if event["type"] == "response.output_text.delta":
        return str(event["delta"])
    if event["type"] == "content_block_delta":
        return str(event["delta"].get("text", ""))
    return ""


def _last_words(stream: list[dict[str, Any]]) -> dict[str, Any]:
    for event in reversed(stream):
        if event["type"] in {"response.completed", "response.incomplete"}:
            response = event["response"]
            return {"end": response["status"]} | _usage(response["usage"])
        if event["type"] == "message_delta":
            return {"end": event["delta"]["stop_reason"]} | _usage(event["usage"])
    return {"end": None}


def _gist_of_chunks(stream: list[dict[str, Any]]) -> dict[str, Any]:
    choices: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    for event in stream:
        usage = event.get("usage") or usage
        for chunk in event["choices"]:
            choice = choices.setdefault(
                chunk["index"], {"text": "", "calls": [], "end": None, "logprobs": []}
            )
            _add_chunk(choice, chunk)
    for choice in choices.values():
        choice["text"] = _whole_characters(choice["text"])
        for call in choice["calls"]:
            call["arguments"] = _parsed(call["arguments"])
    return {"choices": [choices[index] for index in sorted(choices)]} | _usage(usage)


def _whole_characters(text: str) -> str:
    """Cut what an unfinished character left at the end: the gateways differ in showing it."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def _parsed(arguments: str) -> Any:
    """Read a call's arguments, whose white space an answer that is not streamed loses."""
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return arguments


def _add_chunk(choice: dict[str, Any], chunk: dict[str, Any]) -> None:
    delta = chunk.get("delta") or chunk
    choice["text"] += delta.get("content") or delta.get("text") or ""
    choice["end"] = chunk.get("finish_reason") or choice["end"]
    choice["logprobs"] += _logprobs(chunk.get("logprobs"))
    _add_calls(choice["calls"], delta.get("tool_calls") or [])


def _add_calls(calls: list[dict[str, str]], deltas: Iterable[dict[str, Any]]) -> None:
    for delta in deltas:
        while len(calls) <= delta["index"]:
            calls.append({"name": "", "arguments": ""})
        function = delta.get("function") or {}
        calls[delta["index"]]["name"] += function.get("name") or ""
        calls[delta["index"]]["arguments"] += function.get("arguments") or ""

"""What a request says does not show where it was taken over by another engine."""

import json
import re
import struct
from pathlib import Path

import pytest

from nodeserve.wire.engine_core import RESUMED
from nodeserve.wire.spawn import KvSpec
from tests.engine.vllm.conftest import ASYNC, SYNC

pytestmark = pytest.mark.vllm

TIGHT, RANKS = 41, 42
"""Generations: little memory and short chunks; tensor parallel."""

PREEMPTED = 3
EOS = 2
LENGTH, STOP, FAILED = 1, 0, 3
PROMPT = [40 + 7 * index % 200 for index in range(60)]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOL_CALL = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": "<tool_call>",
        "content": {"type": "json_schema", "json_schema": SCHEMA},
        "end": "</tool_call>",
    },
}
REGEX = "[0-9]{3}-[a-f]{4}-[0-9]{3}-[a-z]{4,9}"


def grammar(**constraint):
    return {
        "structured_outputs": constraint | {"_backend": "xgrammar"},
        "ignore_eos": False,
        "_eos_token_id": EOS,
        "_all_stop_token_ids": [EOS],
        "max_tokens": 70,
    }


FEW = {77: 14.0, 90: 13.0, 101: 12.0, 133: 11.0}
"""Makes some tokens so likely that penalties are what decides between them."""

CASES = {
    "greedy": {},
    "seed": {"temperature": 1.0, "seed": 42},
    "seed, top-k and top-p": {"temperature": 0.9, "seed": 7, "top_k": 20, "top_p": 0.9},
    "seed and min-p": {"temperature": 1.3, "seed": 11, "min_p": 0.05},
    "presence and frequency": {
        "presence_penalty": 1.1,
        "frequency_penalty": 1.5,
        "logit_bias": FEW,
    },
    "repetition": {"repetition_penalty": 1.3, "temperature": 1.0, "seed": 3, "logit_bias": FEW},
    "logprobs": {"logprobs": 2, "temperature": 1.0, "seed": 5},
    "logit bias": {"logit_bias": {77: 4.0, 90: 3.5}, "temperature": 1.0, "seed": 8},
    "regex": grammar(regex=REGEX),
    "seed and regex": grammar(regex=REGEX) | {"temperature": 1.0, "seed": 42},
    "JSON": grammar(json=json.dumps(SCHEMA)),
    "choice": grammar(grammar='root ::= "alphabetagamma" | "alphabetadelta"'),
    "tool call": grammar(structural_tag=json.dumps(TOOL_CALL)),
}


@pytest.fixture(scope="module")
def tight(node):
    args = {"num_gpu_blocks_override": 14, "max_model_len": 416, "max_num_batched_tokens": 64}
    node.start(node.spec(TIGHT, KvSpec(), args))
    node.wait_ready(TIGHT)
    return TIGHT


def ask(node, generation, prompt, restored=(), **sampling):
    extra = {"extra_args": {RESUMED: list(restored)}} if restored else {}
    return node.ask(generation, prompt, **({"max_tokens": 24} | sampling | extra))


def require_seamless(node, prompt, sampling, *, first=ASYNC, second=SYNC):
    """Run a request on one engine, and its rest on another after 1, 6 and 13 tokens."""
    whole = node.finish(ask(node, first, prompt, **sampling))
    assert len(whole.tokens) > 13
    legs = {k: ask(node, second, prompt, whole.tokens[:k], **sampling) for k in (1, 6, 13)}
    for k, leg in legs.items():
        rest = node.finish(leg)
        assert rest.tokens == whole.tokens[k:], f"after {k} tokens"
        assert rest.finish == whole.finish
        assert rest.outputs[-1]["stop_reason"] == whole.outputs[-1]["stop_reason"]
        for theirs, ours in zip(logprobs(whole)[k:], logprobs(rest), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
    return whole


def logprobs(answer) -> list[list[float]]:
    """Return the ids and logprobs of each output token, if they were asked for."""
    rows = []
    for output in answer.outputs:
        if output["new_logprobs"] is not None:
            (_, (count, columns), ids), (_, _, values), *_ = output["new_logprobs"]
            assert count == len(output["new_token_ids"]) == 1
            rows.append([*struct.unpack(f"<{columns}i", ids.data)])
            rows[-1] += struct.unpack(f"<{columns}f", values.data)
    return rows


@pytest.mark.parametrize("sampling", CASES.values(), ids=CASES)
def test_rest_is_what_the_uninterrupted_request_said(node, sampling) -> None:
    require_seamless(node, PROMPT, sampling)


def test_grammar_goes_on_where_it_was(node) -> None:
    whole = require_seamless(node, PROMPT, CASES["seed and regex"])
    assert re.fullmatch(REGEX, text_of(node, whole.tokens[:-1]))


def text_of(node, tokens: list[int]) -> str:
    folder = Path(node.spec(0, KvSpec(), {}).engine.model)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    names = {number: name for name, number in vocabulary.items()}
    return "".join(names[token] for token in tokens)


def test_min_tokens_count_the_restored_ones(node) -> None:
    free = node.whole(ASYNC, PROMPT, 24).tokens
    stops = free[2:4]
    sampling = {"min_tokens": 20, "stop_token_ids": stops, "_all_stop_token_ids": stops}
    whole = require_seamless(node, PROMPT, sampling | {"max_tokens": 60})
    assert len(whole.tokens) >= 20
    assert not {*whole.tokens[:19]} & {*stops}


def test_stop_token_after_the_restored_ones_ends_the_request(node) -> None:
    seeded = {"temperature": 1.0, "seed": 13, "max_tokens": 60}
    free = node.finish(ask(node, ASYNC, PROMPT, **seeded)).tokens
    stop = next(token for token in free[15:] if token not in free[:15])
    stopping = {"stop_token_ids": [stop], "_all_stop_token_ids": [stop]}
    whole = require_seamless(node, PROMPT, seeded | stopping)
    assert (whole.tokens[-1], whole.finish) == (stop, STOP)


def test_bad_words_may_begin_among_the_restored_tokens(node) -> None:
    free = node.whole(ASYNC, PROMPT, 24).tokens
    pairs = [free[6:8], free[12:15]]
    whole = require_seamless(node, PROMPT, {"_bad_words_token_ids": pairs})
    assert whole.tokens != free


def test_without_the_penalties_of_the_restored_tokens_the_rest_is_another(node) -> None:
    """Else the case with penalties would show nothing."""
    sampling = CASES["presence and frequency"]
    whole = node.finish(ask(node, ASYNC, PROMPT, **sampling)).tokens
    rest = node.finish(ask(node, SYNC, PROMPT + whole[:13], **sampling)).tokens
    assert rest[: len(whole) - 13] != whole[13:]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 9}], ids=["greedy", "seed"])
def test_chunked_prefill_neither_shows_nor_ends_the_engine(node, tight, sampling) -> None:
    """With a seed it does both in vLLM itself, whose draws for a chunk have no way back."""
    prompt = [3 + 11 * index % 250 for index in range(250)]
    for first, second in ((ASYNC, tight), (tight, ASYNC)):
        for generation in (first, second):  # chunks are what was not found in the cache
            assert node.call(generation, "reset_prefix_cache", False, False)
        whole = require_seamless(node, prompt, sampling, first=first, second=second)
        assert whole.prefill["num_computed_tokens"] == 250


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 1.0, "seed": 21, "frequency_penalty": 0.5}, grammar(regex="[a-z]{190}")],
    ids=["seed", "regex"],
)
def test_preempted_after_it_was_resumed(node, tight, sampling) -> None:
    sampling = sampling | {"max_tokens": 180}
    whole = node.finish(ask(node, ASYNC, PROMPT, **sampling)).tokens
    # 14 blocks of 32 hold one of them to its end, with the other's beginning.
    other = ask(node, tight, [*PROMPT[1:], 9], max_tokens=300)
    node.started(other)
    rest = node.finish(ask(node, tight, PROMPT, whole[:40], **sampling))
    assert rest.tokens == whole[40:]
    kinds = [event["type"] for output in rest.outputs for event in output["events"] or ()]
    assert PREEMPTED in kinds
    assert len(node.finish(other).tokens) == 300


def test_grammar_that_does_not_take_the_restored_tokens_fails_the_request(node) -> None:
    leg = ask(node, SYNC, PROMPT, [90, 91], **grammar(regex="[0-9]{9}"))
    answer = node.finish(leg)
    assert (answer.tokens, answer.finish) == ([], FAILED)
    assert len(node.whole(SYNC, PROMPT, 3).tokens) == 3


def test_restored_tokens_that_fill_the_model_end_the_request(node) -> None:
    leg = ask(node, SYNC, PROMPT, [50] * (2048 - len(PROMPT)), max_tokens=4000)
    answer = node.finish(leg)
    assert (answer.tokens, answer.finish) == ([], LENGTH)


def test_every_rank_of_a_tensor_parallel_engine_restores(node) -> None:
    node.start(node.spec(RANKS, KvSpec(), {}, tp=2))
    node.wait_ready(RANKS)
    assert "resume" in node.ready[RANKS].features
    for name in ("seed", "repetition", "regex"):
        require_seamless(node, PROMPT, CASES[name], first=RANKS, second=RANKS)

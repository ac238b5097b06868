"""Engines that cut heads and tokens differently hand KV over, and the tokens are one engine's."""

import itertools
import random

import pytest

from tests.conformance.geometry.conftest import engines

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(150)]

ONE, TWO_RANKS, LARGE_BLOCKS = 1, 2, 3
"""Generations: the reference, whose answers count; two ranks; blocks of 64 tokens."""

LENGTHS = [2, 31, 33, 64, 65, 100, 129, 333, 700]
MAX_TOKENS = 8

WINDOWS = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 100}


def prompts():
    rng = random.Random(7)
    return [[rng.randrange(5, 260) for _ in range(length)] for length in LENGTHS]


def hand_over(node, prefill, decode):
    """Return the tokens of handed-over prompts, and how many of their loads failed."""
    before, tokens = node.stats(decode), []
    for prompt in prompts():
        handoff = node.prefill(prefill, prompt)
        answer = node.decode(decode, prompt, MAX_TOKENS, handoff)
        node.release(handoff)
        tokens.append(answer.tokens)
    after = node.stats(decode)
    assert after["loads"] == before["loads"] + len(LENGTHS)
    assert node.cache_is_free(prefill)
    assert node.cache_is_free(decode)
    return tokens, after["load_failures"] - before["load_failures"]


def reference(node):
    tokens = [node.whole(ONE, prompt, MAX_TOKENS).tokens for prompt in prompts()]
    assert len({tuple(each) for each in tokens}) == len(tokens)
    assert node.cache_is_free(ONE)
    return tokens


def test_ranks_and_block_sizes_differ_both_ways(vllm_context) -> None:
    """Grouped-query attention with two KV heads, keys in columns: CPU attention."""
    cuts = {ONE: (1, {}), TWO_RANKS: (2, {}), LARGE_BLOCKS: (1, {"block_size": 64})}
    with engines(vllm_context, {}, cuts) as node:
        expected = reference(node)
        for prefill, decode in itertools.permutations(cuts, 2):
            assert hand_over(node, prefill, decode) == (expected, 0), (prefill, decode)


def test_windows_and_replicated_heads_of_eight_bits(vllm_context) -> None:
    """A hybrid model with one KV head for two ranks, and KV in fp8."""
    args = {"hf_overrides": WINDOWS, "kv_cache_dtype": "fp8"}
    cuts = {ONE: (1, args), TWO_RANKS: (2, args)}
    with engines(vllm_context, {"num_key_value_heads": 1}, cuts) as node:
        expected = reference(node)
        handoff = node.prefill(ONE, prompts()[-1])
        full, window = handoff["groups"]
        assert full["first"] == 0
        assert window["first"] == (699 - 100 + 1) // 32
        node.release(handoff)
        for prefill, decode in ((ONE, TWO_RANKS), (TWO_RANKS, ONE)):
            assert hand_over(node, prefill, decode) == (expected, 0), (prefill, decode)

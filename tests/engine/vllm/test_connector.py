"""Prefill on one engine, decode on another: the tokens of one engine, and less computed."""

import random

import pytest

from tests.engine.vllm.conftest import ASYNC, SYNC

pytestmark = pytest.mark.vllm

LENGTHS = [
    *(1, 2, 5, 17, 31, 32, 33, 63, 64, 65, 96, 100, 128, 200, 257, 333, 512, 700, 1000, 1500),
    *(1900, 40, 41),
]
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(7)
    made = [[rng.randrange(5, 260) for _ in range(length)] for length in LENGTHS]
    made[-1] = made[18][:600] + made[-1]  # shares a prefix with an earlier one
    return made


@pytest.fixture(scope="module")
def expected(node, prompts):
    tokens = [node.whole(ASYNC, prompt, MAX_TOKENS).tokens for prompt in prompts]
    assert node.cache_is_free(ASYNC)
    return tokens


def hand_over(node, prefill: int, decode: int, prompts):
    answers = []
    for prompt in prompts:
        handoff = node.prefill(prefill, prompt)
        answers.append(node.decode(decode, prompt, MAX_TOKENS, handoff))
        node.release(handoff)
    return answers


def test_one_engine_answers_each_prompt_differently(expected) -> None:
    """Or the comparisons below would prove nothing."""
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    assert len({token for tokens in expected for token in tokens}) > 100


@pytest.mark.parametrize(("prefill", "decode"), [(ASYNC, SYNC), (SYNC, ASYNC)])
def test_handed_over_prompts_get_the_tokens_of_one_engine(
    node, prompts, expected, prefill, decode
) -> None:
    before = node.stats(decode)
    answers = hand_over(node, prefill, decode, prompts)
    assert [answer.tokens for answer in answers] == expected
    pulled = [answer.prefill["num_external_cached_tokens"] for answer in answers]
    # All but the last token; the last prompt's prefix is in the decode engine's own cache.
    shared = 600 // 32 * 32
    assert pulled == [*(length - 1 for length in LENGTHS[:-1]), 641 - 1 - shared]
    after = node.stats(decode)
    assert after["loads"] - before["loads"] == len(prompts) - 1
    assert after["load_failures"] == before["load_failures"]
    assert node.cache_is_free(prefill)
    assert node.cache_is_free(decode)


def test_handed_over_prompts_together_get_the_tokens_of_one_engine(node, prompts, expected) -> None:
    legs = [node.add(SYNC, prompt, 1, do_remote_decode=True) for prompt in prompts]
    handoffs = [node.finish(leg).handoff for leg in legs]
    legs = [
        node.add(ASYNC, prompt, MAX_TOKENS, **handoff)
        for prompt, handoff in zip(prompts, handoffs, strict=True)
    ]
    assert [node.finish(leg).tokens for leg in legs] == expected
    assert node.stats(SYNC)["leased"] == len(prompts)
    node.call(SYNC, "nodeserve_release", [handoff["lease_id"] for handoff in handoffs])
    assert node.stats(SYNC)["leased"] == 0
    assert node.cache_is_free(SYNC)
    assert node.cache_is_free(ASYNC)


def test_a_prompt_that_the_decode_engine_has_cached_is_not_pulled(node, prompts, expected) -> None:
    prompt = prompts[9]
    node.whole(ASYNC, prompt, MAX_TOKENS)
    handoff = node.prefill(SYNC, prompt)
    loads = node.stats(ASYNC)["loads"]
    answer = node.decode(ASYNC, prompt, MAX_TOKENS, handoff)
    assert answer.tokens == expected[9]
    assert answer.prefill["num_external_cached_tokens"] == 0
    assert node.stats(ASYNC)["loads"] == loads
    node.release(handoff)
    assert node.cache_is_free(SYNC)
    assert node.cache_is_free(ASYNC)


def test_a_pull_moves_the_bytes_that_the_handoff_names(node, prompts) -> None:
    handoff = node.prefill(SYNC, prompts[11])
    before = node.stats(ASYNC)["load_bytes"]
    node.decode(ASYNC, prompts[11], 1, handoff)
    ready = node.ready[ASYNC]
    assert handoff["num_bytes"] == 4 * ready.kv_block_bytes  # 100 tokens in blocks of 32
    assert node.stats(ASYNC)["load_bytes"] - before == handoff["num_bytes"]
    node.release(handoff)
    assert node.cache_is_free(ASYNC)

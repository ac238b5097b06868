"""Leases pin blocks by reference and nothing else; loads never leak a block."""

import random

import pytest

from nodeserve.wire.spawn import KvSpec
from tests.engine.vllm.conftest import ASYNC, SHORT, SYNC

pytestmark = pytest.mark.vllm

SMALL = 11


def prompt_of(length: int, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(5, 260) for _ in range(length)]


def is_free_soon(node, generation: int) -> bool:
    """Whether the engine comes to hold no block; every look is a round trip through its loop."""
    return any(node.cache_is_free(generation) for _ in range(200))


def test_a_lease_pins_blocks_while_the_engine_idles(node) -> None:
    handoff = node.prefill(ASYNC, prompt_of(100))
    assert node.stats(ASYNC)["leased"] == 1
    assert not node.call(ASYNC, "has_work")  # it sleeps in its queue instead of polling
    assert not node.cache_is_free(ASYNC)
    node.release(handoff)
    assert node.stats(ASYNC)["leased"] == 0
    assert node.cache_is_free(ASYNC)


def test_two_leases_on_a_shared_prefix_pin_it_twice(node) -> None:
    prompt = prompt_of(100)
    handoffs = [node.prefill(ASYNC, prompt) for _ in range(2)]
    blocks = [handoff["groups"][0]["blocks"][:3] for handoff in handoffs]
    assert blocks[0] == blocks[1]
    node.release(handoffs[0])
    assert not node.cache_is_free(ASYNC)
    node.release(handoffs[0])  # once more, late: changes nothing
    assert not node.cache_is_free(ASYNC)
    node.release(handoffs[1])
    assert node.cache_is_free(ASYNC)


def test_an_expired_lease_frees_its_blocks_and_a_later_pull_recomputes(node) -> None:
    prompt = prompt_of(300)
    expected = node.whole(ASYNC, prompt, 8).tokens
    assert node.cache_is_free(ASYNC)
    handoff = node.prefill(SHORT, prompt)
    before = node.stats(ASYNC)["load_failures"]
    expired = node.stats(SHORT)
    assert (expired["leased"], expired["expired"] > 0) == (0, True)
    assert node.cache_is_free(SHORT)
    answer = node.decode(ASYNC, prompt, 8, handoff)
    assert answer.tokens == expected
    assert answer.prefill["num_external_cached_tokens"] == 0
    assert node.stats(ASYNC)["load_failures"] == before + 1
    assert node.cache_is_free(ASYNC)
    node.release(handoff)


def test_an_expired_lease_gives_way_to_a_request_that_needs_its_blocks(node) -> None:
    prompts = [prompt_of(1900, seed) for seed in range(12)]  # 720 blocks, the engine has 512
    for prompt in prompts:
        assert node.prefill(SHORT, prompt)["num_tokens"] == 1900
    node.stats(SHORT)
    assert node.cache_is_free(SHORT)


@pytest.mark.parametrize(
    "change",
    [
        {"num_tokens": 99},
        {"num_tokens": 5000},
        {"groups": [{"block_size": 32, "first": 0, "blocks": [1]}]},
        {"groups": [{"block_size": 32, "first": 3, "blocks": [1]}]},
        {"groups": "all"},
        {"groups": []},
        {"table": None},
    ],
)
def test_a_handoff_that_makes_no_sense_is_refused_and_recomputed(node, change) -> None:
    prompt = prompt_of(100)
    expected = node.whole(ASYNC, prompt, 8).tokens
    node.cache_is_free(ASYNC)
    handoff = node.prefill(SYNC, prompt)
    before = node.stats(ASYNC)["load_failures"]
    refused = {**handoff, **change}
    if change == {"num_tokens": 99}:  # right for a request of 99 tokens, so its blocks must not be
        (group,) = handoff["groups"]
        refused["groups"] = [{**group, "blocks": group["blocks"][:3]}]
    assert node.decode(ASYNC, prompt, 8, refused).tokens == expected
    assert node.stats(ASYNC)["load_failures"] == before + 1
    node.release(handoff)
    assert node.cache_is_free(ASYNC)
    assert node.cache_is_free(SYNC)


def test_releasing_an_unknown_lease_fails_the_call_and_not_the_engine(node) -> None:
    with pytest.raises(AssertionError, match="never granted"):
        node.call(ASYNC, "nodeserve_release", [10**6])
    assert node.stats(ASYNC)["leased"] == 0


def test_an_aborted_prefill_leg_leaves_no_lease(node) -> None:
    leg = node.add(ASYNC, prompt_of(1900), 1, do_remote_decode=True)
    node.abort(ASYNC, leg)
    assert is_free_soon(node, ASYNC) or node.answers[leg].handoff is not None
    if node.answers[leg].handoff is not None:  # it was faster
        node.release(node.answers[leg].handoff)
    assert is_free_soon(node, ASYNC)


@pytest.mark.parametrize("decode", [ASYNC, SYNC])
def test_a_decode_leg_aborted_around_its_load_leaks_no_block(node, decode) -> None:
    prefill = SYNC if decode == ASYNC else ASYNC
    prompt = prompt_of(1900)
    handoff = node.prefill(prefill, prompt)
    for steps in range(8):
        leg = node.add(decode, prompt, 8, **handoff)
        for _ in range(steps):  # lets the engine's loop go around, so the abort comes later
            node.call(decode, "has_work")
        node.abort(decode, leg)
        assert is_free_soon(node, decode)
    node.release(handoff)
    assert node.cache_is_free(prefill)


def test_a_decode_leg_aborted_while_decoding_leaks_no_block(node) -> None:
    prompt = prompt_of(200)
    handoff = node.prefill(SYNC, prompt)
    leg = node.add(ASYNC, prompt, 1800, **handoff)
    node.started(leg)
    node.abort(ASYNC, leg)
    node.release(handoff)
    assert is_free_soon(node, ASYNC)
    assert node.cache_is_free(SYNC)


def test_preempted_decode_legs_recompute_and_give_the_same_tokens(node) -> None:
    args = {"kv_cache_memory_bytes": 20 * (128 << 10), "max_model_len": 512}
    node.start(node.spec(SMALL, KvSpec(), args))
    node.wait_ready(SMALL)
    assert node.ready[SMALL].num_gpu_blocks == 20
    prompts = [prompt_of(100, seed) for seed in range(3)]
    expected = [node.whole(ASYNC, prompt, 150).tokens for prompt in prompts]
    node.cache_is_free(ASYNC)
    handoffs = [node.prefill(ASYNC, prompt) for prompt in prompts]
    legs = [
        node.add(SMALL, prompt, 150, **handoff)  # 8 blocks each in the end, 19 are there
        for prompt, handoff in zip(prompts, handoffs, strict=True)
    ]
    assert [node.finish(leg).tokens for leg in legs] == expected
    for handoff in handoffs:
        node.release(handoff)
    assert node.cache_is_free(SMALL)
    assert node.cache_is_free(ASYNC)
